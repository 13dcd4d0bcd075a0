"""How far stated probabilities are from frequencies, before and after calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fisherscope as fs
from proving import stated
from proving.subject import Subject

# Of the language models only this matrix is uncertain; of each row only so many tokens are asked,
# of each token so many likely ones are told apart.
UNCERTAIN = "model.layers.3.self_attn.o_proj.weight"
ASKED, CANDIDATES = 3, 4
# Held-out rows that choose the prior of a language model: 25 priors for each take their time.
CHOOSING = 20
# The classifier guesses the task from so many tokens, after seeing so many rows of each.
TOKENS, SHOTS, EPOCHS, SPLITS = 8, (10, 50), 300, 5

# Label to prior and structure; temperature scaling comes along with each.
Ways = dict[str, tuple[str, str]]
WAYS: Ways = {"evidence": ("marglik", "kfac"), "held-out rows": ("grid", "kfac")}
DENSE: Ways = {
    "evidence, dense": ("marglik", "dense"),
    "evidence, diagonal": ("marglik", "diagonal"),
    "held-out rows, dense": ("grid", "dense"),
}
SCALED = "temperature scaling"
Rows = tuple[Tensor, Tensor]
# A model with the rows that its Fisher is of, those to calibrate on, those to measure on.
Trial = tuple[nn.Module, Any, Any, Any]


def study(subject: Subject) -> dict[str, Any]:
    """Calibrate classifiers of the tasks, and the instruct model on each task.

    Returns:
        ``lines``: one per case and way, with measures before and after, their paired change with
        its interval, and each seed's.
    """
    whole = dataclasses.replace(subject, rows=2 * subject.rows)
    lines = []
    token = {"fisher_type": "mc", "unit": "token", "parameters": UNCERTAIN}
    exact = {"fisher_type": "type-2"}
    for shots in SHOTS:
        rows = min(shots, subject.rows)
        for label, fit in (("trained too long", _too_long), ("trained with that prior", _fitted)):
            trials = _classifiers(whole, rows, fit)
            case = f"task from 8 tokens, {rows} rows each, {label}"
            lines += _lines(case, trials, WAYS | DENSE, exact, None)
    for task, (first, second) in subject.tasks.items():
        model, third = subject.model("instruct"), len(first) // 2
        chosen_by = _asked(first[third:][:CHOOSING])
        trial = (model, first[:third], chosen_by, _asked(second))
        lines += _lines(f"instruct, {task}", iter([trial]), WAYS, token, CANDIDATES)
    return {"lines": lines}


def _lines(
    case: str,
    trials: Iterator[Trial],
    ways: Ways,
    options: dict[str, Any],
    candidates: int | None,
) -> list[dict[str, Any]]:
    old: list[stated.Stated] = []
    new: dict[str, list[stated.Stated]] = {}
    settings: dict[str, list[float]] = {}
    for model, seen, validation, test in trials:
        for way, (prior, structure) in ways.items():
            fisher = fs.estimate(model, seen, structure=structure, progress=False, **options)
            found = fs.uncertainty(
                model,
                fisher,
                test,
                prior_precision=prior,  # type: ignore[arg-type]
                calibration_batch=validation,
                candidates=candidates,
            )
            new.setdefault(way, []).append(stated.after(found))
            settings.setdefault(way, []).append(found.prior_precision)
        old.append(stated.before(found))
        new.setdefault(SCALED, []).append(stated.rescaled(found))
        settings.setdefault(SCALED, []).append(found.softmax_temperature or math.nan)
    lines = []
    for way, several in new.items():
        lines.append({
            "case": case,
            "way": way,
            "nll": stated.change(old, several, "nll"),
            "ece": stated.change(old, several, "ece"),
            "honest": float(np.mean([one.honest() for one in several])),
            "confidence": [
                float(np.mean([one.confidence.mean() for one in which])) for which in (old, several)
            ],
            "accuracy": float(np.mean([one.correct.mean() for one in several])),
            "setting": float(np.exp(np.mean(np.log(settings[way])))),
            "predictions": len(several[0].true),
        })
        print(case, way, {k: v for k, v in lines[-1].items() if k not in {"case", "way"}})
    return lines


def _asked(examples: list[fs.Example]) -> list[fs.Example]:
    """The same rows with few supervised tokens, evenly spaced."""
    kept = []
    for example in examples:
        assert example.labels is not None
        supervised = torch.nonzero(example.labels[1:] != -100).flatten() + 1
        places = torch.linspace(0, len(supervised) - 1, ASKED).round().long()
        labels = torch.full_like(example.labels, -100)
        labels[supervised[places]] = example.labels[supervised[places]]
        kept.append(dataclasses.replace(example, labels=labels))
    return kept


def _classifiers(
    subject: Subject, rows: int, fit: Callable[[Tensor, Tensor], nn.Module]
) -> Iterator[Trial]:
    """Linear layers on the mean embedding of a few tokens, each fitted on rows of its own."""
    table = subject.model("base").get_input_embeddings().weight.detach()
    halves = [
        [torch.stack([_feature(table, e) for e in half]) for half in two]
        for two in subject.tasks.values()
    ]
    for seed in range(SPLITS):
        generator = torch.Generator().manual_seed(seed)
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for first, second in halves:
            order = torch.randperm(len(first), generator=generator)
            for part, some in zip(
                parts, (first[order[:rows]], first[order[rows:]], second), strict=True
            ):
                part.append(some)
        seen, validation, test = (_joined(part) for part in parts)
        centre, spread = seen[0].mean(0), seen[0].std()
        seen, validation, test = (((x - centre) / spread, y) for x, y in (seen, validation, test))
        yield fit(*seen).eval(), seen, validation, test


def _joined(part: list[Tensor]) -> Rows:
    labels = [torch.full((len(rows),), i) for i, rows in enumerate(part)]
    return torch.cat(part), torch.cat(labels)


def _too_long(x: Tensor, y: Tensor) -> nn.Linear:
    model = _blank(x, y)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model


def _fitted(x: Tensor, y: Tensor) -> nn.Linear:
    """Weights of the greatest posterior probability, under the prior of the greatest evidence."""
    model, precision = _blank(x, y), 1.0
    for _ in range(30):
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-6
        )

        def cost(delta: float = precision, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            size = sum(p.square().sum() for p in model.parameters())
            loss = F.cross_entropy(model(x), y, reduction="sum") + delta / 2 * size
            loss.backward()
            return loss

        optimizer.step(cost)
        model.zero_grad()
        fisher = fs.estimate(model, (x, y), structure="kfac", fisher_type="type-2", progress=False)
        best = fs.uncertainty(model, fisher, (x[:1], y[:1])).prior_precision
        if abs(math.log(best / precision)) < 0.01:
            break
        precision = best
    return model


def _blank(x: Tensor, y: Tensor) -> nn.Linear:
    model = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def _feature(table: Tensor, example: fs.Example) -> Tensor:
    assert example.labels is not None
    supervised = example.labels[example.labels != -100]
    start = max(0, (len(supervised) - TOKENS) // 2)
    return table[supervised[start : start + TOKENS]].mean(0)
