"""Two copies fine-tuned on two tasks, merged in several ways."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

import fisherscope as fs
from fisherscope.data import read_jsonl
from fisherscope.demo.build import LESSON_ROWS, TUNING_RATE, WINDOW
from fisherscope.demo.corpora import read_corpora
from fisherscope.demo.training import text_batches
from fisherscope.likelihoods import CausalLM
from fisherscope.studies.tuning import Draw, Schedule, fine_tune, row_batches
from proving.subject import Losses, Sizes, Subject, losses, paired

TASKS = ("code", "qa")
CODE_WINDOWS = 5  # About as many tokens as the sixteen answers of the other task.
FISHER_ROWS = 100


def _ways(base: LlamaForCausalLM) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label to structure of the Fishers that predict (and maybe merge), and options."""
    return {
        "mean": ("diagonal", {"method": "mean"}),
        "task arithmetic, scale 0.3": (
            "diagonal",
            {"method": "task-arithmetic", "base": base, "scale": 0.3},
        ),
        "task arithmetic, scale 1": (
            "diagonal",
            {"method": "task-arithmetic", "base": base, "scale": 1.0},
        ),
        "TIES, density 0.2, scale 1": (
            "diagonal",
            {"method": "ties", "base": base, "density": 0.2, "scale": 1.0},
        ),
        "Fisher, diagonal": ("diagonal", {"method": "fisher"}),
        "Fisher, diagonal, as estimated": ("diagonal", {"method": "fisher", "normalize": False}),
        "Fisher, KFAC": ("kfac", {"method": "fisher"}),
    }


def study(subject: Subject, sizes: Sizes) -> dict[str, Any]:
    """Fine-tune, merge, and measure on the held-out rows of both tasks.

    Returns:
        ``lines``: one per way with the mean loss, its paired difference from the plain mean (of
        losses averaged over seeds, and each seed's value), and predicted beside measured cost
        per task; ``ends``: losses of the base and of the copies.
    """
    base = subject.model("base")
    held_out = {task: [*subject.tasks[task][0], *subject.tasks[task][1]] for task in TASKS}
    draws, training_rows = _training(subject)
    measured: dict[str, list[dict[str, Losses]]] = {}
    predicted: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(sizes.seeds):
        copies = []
        for task in TASKS:
            tuned = copy.deepcopy(base)
            schedule = Schedule(steps=sizes.steps, peak=TUNING_RATE)
            fine_tune(
                tuned,
                draws[task](),
                schedule,
                likelihood=CausalLM(),
                seed=seed,
                label=f"{task}, seed {seed}",
            )
            copies.append(tuned)
            found = {t: losses(tuned, rows) for t, rows in held_out.items()}
            measured.setdefault(f"tuned on {task}", []).append(found)
        fishers = {
            structure: [
                fs.estimate(
                    model, training_rows[task], structure=structure, fisher_type="mc",
                    progress=False,
                )
                for task, model in zip(TASKS, copies, strict=True)
            ]
            for structure in ("diagonal", "kfac")
        }  # fmt: skip
        for label, (structure, options) in _ways(base).items():
            merged = fs.merge(copies, fishers[structure], **options)
            measured.setdefault(label, []).append({
                t: losses(merged.model, rows) for t, rows in held_out.items()
            })
            per_token = [f.n_units / f.n_tokens for f in fishers[structure]]
            predicted.setdefault(label, []).append(
                tuple(c * k for c, k in zip(merged.costs, per_token, strict=True))
            )
            print(f"seed {seed} {label} {merged.outcome}: {_each(measured[label][-1])}")
    measured["base"] = [{t: losses(base, rows) for t, rows in held_out.items()}] * sizes.seeds
    ends = {
        name: {t: float(np.mean([one[t].mean for one in measured[name]])) for t in TASKS}
        for name in ("base", *(f"tuned on {t}" for t in TASKS))
    }
    lines = [
        {
            "way": label,
            "losses": {t: float(np.mean([one[t].mean for one in measured[label]])) for t in TASKS},
            "difference": paired(_pooled(measured[label]), _pooled(measured["mean"])),
            "seeds": [
                paired(one, mean)["value"]
                for one, mean in zip(measured[label], measured["mean"], strict=True)
            ],
            "predicted": dict(zip(TASKS, np.mean(predicted[label], 0).tolist(), strict=True)),
            "measured": {
                t: paired(_pooled(measured[label], t), _pooled(measured[f"tuned on {t}"], t))
                for t in TASKS
            },
        }
        for label in _ways(base)
    ]
    return {
        "lines": lines,
        "ends": ends,
        "rows": {t: len(rows) for t, rows in held_out.items()},
        "fisher_rows": {t: len(rows) for t, rows in training_rows.items()},
    }


def _training(
    subject: Subject,
) -> tuple[dict[str, Callable[[], Draw]], dict[str, list[fs.Example]]]:
    """What each copy is trained on, and rows of it for the Fisher."""
    corpora, tokenizer = read_corpora(), subject.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lessons.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in corpora.lessons), "utf-8")
        lessons = read_jsonl(path, tokenizer, max_length=WINDOW)
    windows = text_batches(tokenizer, [(corpora.documents["code"], CODE_WINDOWS)], WINDOW)
    draws: dict[str, Callable[[], Draw]] = {
        "code": lambda: windows,
        "qa": lambda: row_batches(lessons, LESSON_ROWS),
    }
    generator = torch.Generator().manual_seed(len(TASKS))
    drawn = [windows(generator) for _ in range(FISHER_ROWS // CODE_WINDOWS)]
    code = fs.examples([{**batch.inputs, "labels": batch.labels} for batch in drawn])
    return draws, {"code": code, "qa": lessons[:: -(-len(lessons) // FISHER_ROWS)]}


def _each(found: dict[str, Losses]) -> str:
    return ", ".join(f"{t} {one.mean:.3f}" for t, one in found.items())


def _pooled(found: list[dict[str, Losses]], task: str | None = None) -> dict[str, Losses]:
    """Each row's loss as the mean over seeds."""
    return {
        t: Losses(np.mean([one[t].nats for one in found], 0), found[0][t].tokens)
        for t in ([task] if task else found[0])
    }
