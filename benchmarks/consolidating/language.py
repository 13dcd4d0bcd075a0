"""The demo's base model learns to answer questions, through the Hugging Face Trainer.

Old tasks are what it was trained on, source code and prose; the new one is questions and answers.
Losses are measured on held-out rows of all three along the way, so that old tasks can be compared
at equal loss of the new one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import fisherscope as fs
from fisherscope.data import batches, collate
from fisherscope.demo import build
from fisherscope.demo.build import TUNING_RATE, WINDOW, _lessons
from fisherscope.demo.corpora import read_corpora
from fisherscope.demo.passages import evenly
from fisherscope.demo.training import text_batches
from fisherscope.integrations import EWCCallback
from fisherscope.studies.course import at_level
from fisherscope.studies.seeds import over_seeds

STEPS, FISHER_ROWS = 30, 64
# The new task's loss falls in the first few steps, old ones go on rising after that.
MEASURED = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30)
# Questions are short, and their losses vary: more of them, evenly over the held-out modules.
HELD_OUT = {"code": 12, "prose": 12, "qa": 96}
BATCH = 8
# Set beforehand, the same for both penalties: nothing is chosen by its result.
STRENGTHS = (10.0, 100.0)
PLAIN, PENALISED = "plain", ("L2", "EWC")
ARMS = ((PLAIN, 0.0), *((method, s) for s in STRENGTHS for method in PENALISED))
SEEDS = (0, 1, 2, 3, 4)
# Shares of what plain fine-tuning gains on the new task: where old tasks are compared.
LEVELS = (0.5, 0.9, 1.0)
OLD, NEW = ("code", "prose"), ("qa",)


@functools.cache
def subject() -> dict[str, Any]:
    """Model, tokenizer, rows, and the Fishers of both old tasks on what they were trained on."""
    place = Path(os.environ.get("FISHERSCOPE_DEMO", "runs/demo"))
    if not (place / "models").is_dir():
        build(place, progress=False)
    path = str(place / "models" / "base")
    model, tokenizer = (c.from_pretrained(path) for c in (AutoModelForCausalLM, AutoTokenizer))
    corpora = read_corpora()
    held_out = {
        name: evenly(fs.read_jsonl(place / "tasks" / f"{name}.jsonl", tokenizer), count)
        for name, count in HELD_OUT.items()
    }
    fishers = []
    for name in OLD:
        draw = text_batches(tokenizer, [(corpora.documents[name], FISHER_ROWS)], WINDOW)
        ids = draw(torch.Generator().manual_seed(1)).labels
        rows = fs.examples({"input_ids": ids, "labels": ids})
        fishers.append(
            fs.estimate(model, rows, fisher_type="mc", unit="token", draws=1, progress=False)
        )
    return {
        "model": path,
        "held_out": held_out,
        "lessons": _lessons(corpora, tokenizer),
        "fishers": fishers,
    }


@torch.no_grad()
def losses(model: Any, held_out: dict[str, Any]) -> dict[str, float]:
    """Mean loss of each task's held-out rows in nats per token."""
    training = model.training
    model.eval()
    found = {}
    for name, rows in held_out.items():
        total = count = 0.0
        for group in batches(rows, 16):
            batch = collate(group)
            tokens = int((batch.labels[:, 1:] != -100).sum())
            total += float(batch.call(model, labels=batch.labels).loss) * tokens
            count += tokens
        found[name] = total / count
    model.train(training)
    return found


class Follow(TrainerCallback):
    """Losses of all tasks every few steps."""

    def __init__(self, held_out: dict[str, Any]) -> None:
        self.held_out, self.curve = held_out, []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.curve.append(losses(kwargs["model"], self.held_out))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in MEASURED:
            self.curve.append(losses(kwargs["model"], self.held_out))


def penalty(model: Any, method: str, strength: float) -> fs.EWC:
    """Both old tasks' Fishers; for L2 the same trace, spread evenly over all parameters."""
    fishers = subject()["fishers"]
    if method == "L2":
        even = []
        for fisher in fishers:
            mean = sum(float(t.sum()) for t in fisher.sums.values()) / fisher.n_parameters
            sums = {name: torch.full_like(t, mean) for name, t in fisher.sums.items()}
            even.append(dataclasses.replace(fisher, sums=sums))
        fishers = even
    return fs.EWC(model, fishers, strength=strength)


def run(method: str, strength: float, seed: int) -> list[dict[str, float]]:
    """Fine-tune once; the curve of losses."""
    known = subject()
    model = AutoModelForCausalLM.from_pretrained(known["model"])
    follow = Follow(known["held_out"])
    callbacks: list[TrainerCallback] = [follow]
    if method in PENALISED:
        callbacks.append(EWCCallback(penalty(model, method, strength)))

    def together(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        return {**batch.inputs, "labels": batch.labels}

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=STEPS,
                learning_rate=TUNING_RATE,
                lr_scheduler_type="cosine",
                warmup_steps=3,
                adam_beta2=0.98,
                seed=seed,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
                logging_steps=15,
            ),
            train_dataset=known["lessons"],
            data_collator=together,
            callbacks=callbacks,
        )
        trainer.train()
    return follow.curve


def at(curve: list[dict[str, float]], level: float) -> float:
    """Mean old loss where the new task's loss first falls to a level; NaN if it never does."""
    new, old = (np.array([np.mean([p[n] for n in names]) for p in curve]) for names in (NEW, OLD))
    return at_level(new, old, level)


def levels(plain: list[dict[str, float]]) -> list[float]:
    """New-task losses at shares of the best that plain fine-tuning reaches."""
    start, best = plain[0]["qa"], min(point["qa"] for point in plain)
    return [start - share * (start - best) for share in LEVELS]


def measure(known: dict[str, Any], save: Any, log: Any) -> None:
    """Fill in what is not known yet."""
    runs = known.setdefault("runs", {})

    def once(method: str, strength: float, seed: int) -> list[dict[str, float]]:
        key = f"{method} {strength:g} {seed}"
        if key not in runs:
            log(f"  {key}")
            runs[key] = run(method, strength, seed)
            save()
        return runs[key]

    curves: dict[tuple[str, float], list[Any]] = {}
    for seed in SEEDS:
        for method, strength in ARMS:
            curves.setdefault((method, strength), []).append(once(method, strength, seed))
    known["table"] = _table(curves)
    save()


def _table(curves: dict[tuple[str, float], list[Any]]) -> list[dict[str, Any]]:
    rows = []
    for number, share in enumerate(LEVELS):
        found = {}
        for arm in curves:
            values = []
            for seed, curve in enumerate(curves[arm]):
                level = levels(curves[PLAIN, 0.0][seed])[number]
                start = float(np.mean([curve[0][name] for name in OLD]))
                values.append(at(curve, level) - start)
            found[arm] = np.array(values)
        for method, strength in curves:
            values = found[method, strength]
            row = {"share": share, "method": method, "strength": strength, **_interval(values)}
            row["saved"] = _interval(found[PLAIN, 0.0] - values)
            if method == "EWC":
                row["against_L2"] = _interval(found["L2", strength] - values)
            rows.append(row)
    return rows


def _interval(values: np.ndarray) -> dict[str, Any]:
    found = over_seeds(values)
    # Seeds that never reach the level are no better for it: no mean over the others.
    shown = found if found.n == len(values) else over_seeds([])
    return {"mean": shown.value, "low": shown.low, "high": shown.high, "reached": found.n}
