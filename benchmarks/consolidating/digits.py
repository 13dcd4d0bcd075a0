"""Permuted digits: five tasks in a row, the same ten classes, the pixels in another order each.

A task is scikit-learn's digits (1797 images of 8 by 8) under a permutation of the pixels, the
first one as they are. One head for all tasks, which the model is not told apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fisherscope as fs
from fisherscope.studies.continual import continual_metrics

TASKS, STEPS, BATCH, RATE = 5, 200, 64, 2e-3
WIDTHS = {"digits": 1000, "narrow": 100}
TRAINING, VALIDATION = 1000, 297  # the other 500 are for testing
METHODS = ("naive", "L2", "EWC", "online EWC", "joint")
PENALISED = ("L2", "EWC", "online EWC")
# One grid for every method, from far too weak to far too strong.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)


@dataclass(frozen=True)
class Task:
    """Images and labels of three disjoint parts."""

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def tasks(seed: int) -> list[Task]:
    """The tasks of a seed; the split of the images is the same for all."""
    digits: Any = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(12345))
    parts = order.split([TRAINING, VALIDATION, len(order) - TRAINING - VALIDATION])
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(TASKS):
        pixels = torch.randperm(64, generator=generator) if number else torch.arange(64)
        found.append(Task(*((images[part][:, pixels], labels[part]) for part in parts)))
    return found


def model(seed: int, width: int) -> nn.Sequential:
    """An MLP of two hidden layers: 1,076,010 parameters at width 1000, 17,610 at 100."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def train(net: nn.Module, data: tuple[Tensor, Tensor], steps: int, seed: int, ewc: Any) -> None:
    """Adam at a constant rate on the mean loss, plus the penalty if there is one."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    images, labels = data
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        if ewc is not None:
            ewc.add_gradient()
        optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of images whose class is found."""
    return float((net(data[0]).argmax(1) == data[1]).float().mean())


def fisher(net: nn.Module, data: tuple[Tensor, Tensor], method: str) -> fs.Fisher:
    """The exact diagonal; for L2 the same trace, spread evenly over all parameters."""
    found = fs.estimate(net, data, fisher_type="type-2", max_examples=500, progress=False)
    if method != "L2":
        return found
    mean = sum(float(t.sum()) for t in found.sums.values()) / found.n_parameters
    even = {name: torch.full_like(t, mean) for name, t in found.sums.items()}
    return dataclasses.replace(found, sums=even)


def run(method: str, strength: float, seed: int, part: str, width: int) -> dict[str, Any]:
    """Train on all tasks in a row.

    Args:
        method: One of :data:`METHODS`.
        strength: Of the penalty.
        seed: Of permutations, weights and batches.
        part: What accuracy is measured on, ``"validation"`` or ``"test"``.
        width: Of the hidden layers.

    Returns:
        The matrix of accuracies and those before training.
    """
    sequence, net, ewc = tasks(seed), model(seed, width), None
    held = [getattr(task, part) for task in sequence]
    before = [accuracy(net, data) for data in held]
    matrix = []
    for number, task in enumerate(sequence):
        if method == "joint":
            parts = [t.training for t in sequence[: number + 1]]
            data = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
            train(net, data, STEPS, 1000 * seed + number, None)
        else:
            train(net, task.training, STEPS, 1000 * seed + number, ewc)
        matrix.append([accuracy(net, data) for data in held])
        if method in PENALISED:
            one = fisher(net, task.training, method)
            if ewc is None:
                decay = 1.0 if method == "online EWC" else None
                ewc = fs.EWC(net, one, strength=strength, decay=decay)
            else:
                ewc.consolidate(one)
    return {"matrix": matrix, "untrained": before}


def tuned(known: dict[str, Any], width: int, save: Any, log: Any) -> dict[str, float]:
    """The strength of each method with the best mean accuracy on validation images."""
    best = {}
    for method in PENALISED:
        for strength in STRENGTHS:
            key = f"{method} {strength:.3g}"
            if key not in known:
                log(f"  tuning {key}")
                runs = [run(method, strength, seed, "validation", width) for seed in TUNING_SEEDS]
                known[key] = [float(np.mean(r["matrix"][-1])) for r in runs]
                save()
        best[method] = max(STRENGTHS, key=lambda s, m=method: np.mean(known[f"{m} {s:.3g}"]))
    return best


def measure(known: dict[str, Any], width: int, save: Any, log: Any) -> None:
    """Fill in what is not known yet."""
    known["best"] = tuned(known.setdefault("tuning", {}), width, save, log)
    runs = known.setdefault("runs", {})
    for seed in SEEDS:
        for method in METHODS:
            key = f"{method} {seed}"
            if key not in runs:
                log(f"  {key}")
                runs[key] = run(method, known["best"].get(method, 0.0), seed, "test", width)
                save()
    reference = [np.diagonal(runs[f"joint {seed}"]["matrix"]) for seed in SEEDS]
    known["metrics"] = {
        method: continual_metrics(
            [runs[f"{method} {seed}"]["matrix"] for seed in SEEDS],
            untrained=[runs[f"{method} {seed}"]["untrained"] for seed in SEEDS],
            reference=reference,
        )
        .to_frame()
        .to_dict("records")
        for method in METHODS
    }
    save()
