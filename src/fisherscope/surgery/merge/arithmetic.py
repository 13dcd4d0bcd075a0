"""Merges without a Fisher, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean.

    Args:
        values: One tensor per model.
        weights: Of at least 0, not all 0.

    Returns:
        A tensor of the same shape.
    """
    whole = sum(weights)
    parts = (weight / whole * value for weight, value in zip(weights, values, strict=True))
    return sum(parts, torch.zeros_like(values[0]))


def task_arithmetic(
    base: Tensor, values: Sequence[Tensor], weights: Sequence[float], scale: float
) -> Tensor:
    """The base plus the scaled sum of weighted task vectors.

    Source: Ilharco et al. (2023).

    Args:
        base: What the models started from.
        values: One tensor per model.
        weights: One number per model.
        scale: Of the sum.

    Returns:
        A tensor of the same shape.
    """
    parts = (weight * (value - base) for weight, value in zip(weights, values, strict=True))
    return base + scale * sum(parts, torch.zeros_like(base))


def ties(
    base: Tensor,
    values: Sequence[Tensor],
    weights: Sequence[float],
    scale: float,
    thresholds: Sequence[float],
) -> Tensor:
    """Trim, elect a sign, and average those that have it.

    Source: Yadav et al. (2023). Where the trimmed task vectors cancel exactly, no sign is
    elected, and the base stays.

    Args:
        base: What the models started from.
        values: One tensor per model.
        weights: Of at least 0.
        scale: Of the mean.
        thresholds: Smallest magnitude that each model's trimming keeps.

    Returns:
        A tensor of the same shape.
    """
    total, count = torch.zeros_like(base), torch.zeros_like(base)
    kept = []
    for value, weight, threshold in zip(values, weights, thresholds, strict=True):
        move = value - base
        kept.append(weight * torch.where(move.abs() >= threshold, move, 0.0))
    elected = sum(kept, torch.zeros_like(base)).sign()
    for move, weight in zip(kept, weights, strict=True):
        agrees = (move.sign() == elected) & (elected != 0)
        total += torch.where(agrees, move, 0.0)
        count += weight * agrees
    return base + scale * total / torch.where(count > 0, count, 1.0)


def threshold(moves: Iterable[Tensor], density: float) -> float:
    """The smallest of the largest magnitudes.

    Args:
        moves: Task vectors of one model.
        density: Fraction to keep, of all of them together; at least one entry.

    Returns:
        The magnitude; entries equal to it are kept as well.
    """
    sizes = torch.cat([move.reshape(-1).abs() for move in moves])
    if not len(sizes):
        return 0.0
    k = max(1, round(density * len(sizes)))
    return torch.kthvalue(sizes, len(sizes) - k + 1).values.item()
