"""How far stated probabilities are from frequencies, before and after calibration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fisherscope as fs
from proving.subject import Subject

# Of the demo's model only this matrix is uncertain; of each row only so many tokens are asked, of
# each token so many likely ones are told apart.
UNCERTAIN = "model.layers.3.self_attn.o_proj.weight"
ASKED, CANDIDATES = 3, 4
# The classifier guesses the task from so many tokens; a fifth of the rows for too long is too few.
TOKENS, SEEN, EPOCHS = 8, 0.2, 300
KINDS = ("laplace", "temperature_scaling")
MEASURES = ("nll", "brier", "ece")


def study(subject: Subject) -> dict[str, Any]:
    """Calibrate the instruct model on each task, and a small classifier of the tasks.

    Returns:
        ``lines``: one per case, way and measure with the value before, after, and the paired
        change with its interval; ``cases``: sizes and fitted settings of each case.
    """
    lines, cases = [], {}
    model = subject.model("instruct")
    for task, (first, second) in subject.tasks.items():
        third = len(first) // 2
        fisher = fs.estimate(
            model,
            first[:third],
            structure="kfac",
            fisher_type="mc",
            unit="token",
            parameters=UNCERTAIN,
            progress=False,
        )
        found = fs.uncertainty(
            model,
            fisher,
            _asked(second),
            calibration_batch=_asked(first[third:]),
            candidates=CANDIDATES,
        )
        _report(f"instruct, {task}", found, lines, cases)
    classifier, seen, validation, test = _classifier(subject)
    fisher = fs.estimate(classifier, seen, structure="kfac", fisher_type="type-2", progress=False)
    found = fs.uncertainty(classifier, fisher, test, calibration_batch=validation)
    _report("task from 8 tokens", found, lines, cases)
    return {"lines": lines, "cases": cases}


def _report(
    case: str, found: fs.Uncertainty, lines: list[dict[str, Any]], cases: dict[str, Any]
) -> None:
    table = found.quality.set_index(["predictor", "measure"])
    for kind in KINDS:
        for measure in MEASURES:
            after = table.loc[kind, measure]
            lines.append({
                "case": case,
                "way": kind,
                "measure": measure,
                "before": float(table.loc[("map", measure), "value"]),
                "after": float(after["value"]),
                "change": {
                    "value": float(after["change"]),
                    "low": float(after["change_low"]),
                    "high": float(after["change_high"]),
                },
            })
    cases[case] = {
        "predictions": len(found.predictions),
        "accuracy": float(table.loc[("map", "accuracy"), "value"]),
        "prior_precision": found.prior_precision,
        "prior_outcome": found.prior_outcome,
        "effective_parameters": found.effective_parameters,
        "observations": found.observations,
        "softmax_temperature": found.softmax_temperature,
    }
    print(case, cases[case], found.quality.to_string(), sep="\n")


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


Rows = tuple[Tensor, Tensor]


def _classifier(subject: Subject) -> tuple[nn.Linear, Rows, Rows, Rows]:
    """A linear layer on the mean embedding of a few tokens, and its three sets of rows."""
    table = subject.model("base").get_input_embeddings().weight.detach()
    parts: tuple[list[list[Tensor]], ...] = ([], [], [])
    for first, second in subject.tasks.values():
        cut = round(SEEN * len(first))
        features = [torch.stack([_feature(table, e) for e in half]) for half in (first, second)]
        for part, rows in zip(
            parts, (features[0][:cut], features[0][cut:], features[1]), strict=True
        ):
            part.append(rows)
    seen, validation, test = (
        (
            torch.cat(part),
            torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(part)]),
        )
        for part in parts
    )
    centre, spread = seen[0].mean(0), seen[0].std()
    seen, validation, test = (((x - centre) / spread, y) for x, y in (seen, validation, test))
    model = nn.Linear(table.shape[1], len(subject.tasks))
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        F.cross_entropy(model(seen[0]), seen[1]).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval(), seen, validation, test


def _feature(table: Tensor, example: fs.Example) -> Tensor:
    assert example.labels is not None
    supervised = example.labels[example.labels != -100]
    start = max(0, (len(supervised) - TOKENS) // 2)
    return table[supervised[start : start + TOKENS]].mean(0)
