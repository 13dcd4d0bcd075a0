"""Digit networks of several widths: thresholds and graphs against size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fisherscope as fs
from fisherscope.likelihoods import Classification
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches

WIDTHS = (16, 32, 64, 128, 256)
STEPS, REPETITIONS, POINTS, DRAWS, WATCHED = 400, 8, 16, 48, 300


def measure(
    log: Callable[[str], None],
    *,
    widths: Sequence[int] = WIDTHS,
    steps: int = STEPS,
    repetitions: int = REPETITIONS,
    points: int = POINTS,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Train a network of every width and take it apart; the digits watched are not trained on."""
    (x, y), (a, b) = digits()
    models, studies = {}, {}
    for width in widths:
        name = f"{width} wide"
        log(name)
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 10),
        )  # fmt: skip
        fine_tune(
            model,
            row_batches(fs.examples((x, y)), 64),
            Schedule(steps=steps, peak=3e-3, weight_decay=0.01),
            likelihood=Classification(),
            seed=0,
            progress=False,
        )
        models[name] = model
        studies[name] = fs.percolation(
            model, {"digits": fs.estimate(model, (x, y), progress=False)}, {"digits": [(a, b)]},
            orders=("fisher", "obd", "inverse", "random"), repetitions=repetitions, points=points,
            side=0, candidates=0, structure=False, max_examples=WATCHED, name=name,
        )  # fmt: skip
    found = fs.finite_size(studies, models, draws=draws)
    return {**found.to_dict(), "widths": list(widths), "draws": draws, "repetitions": repetitions}


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two thirds of the digits to train on and the rest, in one fixed order."""
    bunch: Any = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = 2 * len(x) // 3
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])
