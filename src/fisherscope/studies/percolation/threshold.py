"""Where a task is lost: thresholds of removal curves, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fisherscope.structures.intervals import resamples
from fisherscope.studies.percolation.functional import Curve, position
from fisherscope.studies.percolation.watch import LOSS, Task

# A loss that is no number any more; finite, so that a weight of zero leaves it out.
_LOST = 1e30

Outcome = Literal[
    "ok",
    "at_first_unit",
    "not_reached",
    "no_better_than_uninformed",
    "no_repetitions",
    "no_random",
    "too_few_examples",
]
QUANTITIES = ("midpoint", "steepest", "susceptibility", "robustness", "attack_ratio")


@dataclass(frozen=True, eq=False)
class Fall:
    """Loss of one task along one curve: as measured, and in resampled examples and repetitions.

    Attributes:
        removed: int64 ``[points]``.
        count: Units in all.
        losses: float64 ``[1 + resamples, repetitions, points]``, nats per token; first the
            estimate.
        shares: float64 ``[1 + resamples, repetitions]``, weight of each repetition.
        uninformed: Loss of a model that ignores its input.
        n_examples: Number of examples.
    """

    removed: np.ndarray
    count: int
    losses: np.ndarray
    shares: np.ndarray
    uninformed: float
    n_examples: int

    @property
    def mean(self) -> np.ndarray:
        """float64 ``[1 + resamples, points]``, over repetitions."""
        return np.einsum("brk,br->bk", self.losses, self.shares)

    @property
    def informed(self) -> bool:
        """Whether the intact model is better than uninformed, in 97.5% of the resamples too."""
        better = self.losses[:, 0, 0] < self.uninformed
        return bool(better[0]) and float(better.mean()) >= 0.975

    def progress(self, losses: np.ndarray) -> np.ndarray:
        """From the intact loss (0) to the uninformed one (1).

        Args:
            losses: ``[1 + resamples, ..., points]``.

        Returns:
            The same shape, between 0 and 1.
        """
        intact = losses[..., :1]
        return np.clip((losses - intact) / (self.uninformed - intact), 0.0, 1.0)

    def midpoint(self) -> np.ndarray:
        """The smallest fraction at which the loss is halfway to the uninformed one.

        Returns:
            float64 ``[1 + resamples]``; infinite where it never is.
        """
        where = halfway(position(self.removed), self.progress(self.mean))
        return np.where(np.isfinite(where), self._fraction(where), np.inf)

    def steepest(self) -> np.ndarray:
        """The fraction at which the loss rises fastest per logarithm of the fraction.

        Returns:
            float64 ``[1 + resamples]``.
        """
        x = position(self.removed)
        slopes = np.diff(self.progress(self.mean), axis=1) / np.diff(x)
        return self._fraction(((x[1:] + x[:-1]) / 2)[slopes.argmax(1)])

    def susceptibility(self) -> np.ndarray:
        """The fraction at which repetitions differ most.

        Returns:
            float64 ``[1 + resamples]``; NaN where all drawn repetitions are the same one.
        """
        y = self.progress(self.losses)
        mean = np.einsum("brk,br->bk", y, self.shares)
        spread = np.einsum("brk,br->bk", np.square(y - mean[:, None]), self.shares)
        found = self.removed[spread.argmax(1)] / self.count
        return np.where(spread.max(1) > 0, found, np.nan)

    def robustness(self) -> np.ndarray:
        """How much of the function remains, averaged over all fractions from 0 to 1.

        Returns:
            float64 ``[1 + resamples]``, between 0 (lost with the first unit) and 1.
        """
        kept = 1 - self.progress(self.mean)
        u = self.removed + 0.5
        # Exact for what is linear in log(removed + 1/2) between points: a + b log u.
        b = np.diff(kept, axis=1) / np.diff(np.log(u))
        a = kept[:, :-1] - b * np.log(u[:-1])
        area = a * np.diff(u) + b * np.diff(u * np.log(u) - u)
        return area.sum(1) / self.count

    def _fraction(self, where: np.ndarray) -> np.ndarray:
        return np.maximum(np.exp(where) - 0.5, 1.0) / self.count


def halfway(x: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Where curves first reach one half, with straight lines between the points.

    Args:
        x: float64 ``[points]``, ascending.
        progress: float64 ``[curves, points]``, below one half at the first point.

    Returns:
        float64 ``[curves]``; infinite for a curve that never does.
    """
    reached = progress >= 0.5
    at = np.maximum(reached.argmax(1), 1)
    rows = np.arange(len(progress))
    below, above = progress[rows, at - 1], progress[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((0.5 - below) / (above - below), 0.0, 1.0)
        where = x[at - 1] + part * (x[at] - x[at - 1])
    return np.where(reached.any(1), where, np.inf)


def fall(curve: Curve, task: Task, seed: int) -> Fall:
    """Resample one task along one curve.

    All curves of a task draw the same examples for the same seed, so that they can be compared
    in pairs.

    Args:
        curve: The curve.
        task: The task.
        seed: Keys the resampling.

    Returns:
        The losses.
    """
    sums = np.minimum(curve.sums[task.name][:, :, LOSS], _LOST)
    n, repetitions = len(task.ids), len(sums)
    weights = resamples(n, (seed, 0), itself=True)
    shares = resamples(repetitions, (seed, 1), itself=True) / repetitions
    losses = np.einsum("bn,rkn->brk", weights, sums) / (weights @ task.tokens)[:, None, None]
    return Fall(curve.removed, curve.count, losses, shares, task.uninformed, n)


def thresholds(curves: Sequence[Curve], tasks: Mapping[str, Task], seed: int) -> pd.DataFrame:
    """All thresholds of all curves on all tasks.

    Args:
        curves: The curves.
        tasks: The tasks.
        seed: Keys the resampling.

    Returns:
        One row per curve, task and quantity: value with its 95% interval, and the outcome.
    """
    rows = [
        {**labels(curve), "on": name, **row}
        for curve in curves
        for name, task in tasks.items()
        for row in _quantities(curve, _random(curves, curve), task, seed)
    ]
    return pd.DataFrame(rows)


def labels(curve: Curve) -> dict[str, Any]:
    """What tells a curve from the others.

    Args:
        curve: The curve.

    Returns:
        Columns of a table.
    """
    return {
        "level": curve.level,
        "removal": curve.change.removal,
        "order": curve.order,
        "by": curve.by,
    }


def _random(curves: Sequence[Curve], like: Curve) -> Curve | None:
    same = (c for c in curves if c.level == like.level and c.change == like.change)
    return next((c for c in same if c.order == "random"), None)


def _quantities(
    curve: Curve, random: Curve | None, task: Task, seed: int
) -> Iterator[dict[str, Any]]:
    mine = fall(curve, task, seed)
    shared = {"n_examples": mine.n_examples, "repetitions": mine.losses.shape[1]}
    if not mine.informed:
        for quantity in QUANTITIES:
            yield {"quantity": quantity, **nothing("no_better_than_uninformed"), **shared}
        return
    midpoint = mine.midpoint()
    found = {
        "midpoint": midpoint,
        "steepest": mine.steepest(),
        "robustness": mine.robustness(),
    }
    if mine.losses.shape[1] > 1:
        found["susceptibility"] = mine.susceptibility()
    if random is not None and random is not curve:
        attack = ratio(fall(random, task, seed).midpoint(), midpoint, mine.n_examples)
    else:
        attack = nothing("no_random")
    for quantity in QUANTITIES:
        if quantity == "attack_ratio":
            row = attack
        elif quantity in found:
            row = estimate(found[quantity], mine.n_examples)
            first = 1 / mine.count
            if quantity == "midpoint" and row["outcome"] == "ok" and row["value"] <= first:
                row["outcome"] = "at_first_unit"
        else:
            row = nothing("no_repetitions")
        yield {"quantity": quantity, **row, **shared}


def nothing(outcome: Outcome) -> dict[str, Any]:
    """A quantity that there is no number of.

    Args:
        outcome: Why.

    Returns:
        Columns of a table.
    """
    return {"value": np.nan, "low": np.nan, "high": np.nan, "outcome": outcome}


def ratio(above: np.ndarray, below: np.ndarray, n_examples: int) -> dict[str, Any]:
    """A ratio of two midpoints with its 95% percentile interval.

    Args:
        above: The estimate, then resamples of it; infinite where it is beyond the curve.
        below: The other, in the same draws.
        n_examples: Number of examples behind them.

    Returns:
        Columns of a table. A draw in which both lie beyond their curves could be anything, so it
        widens the interval on both sides.
    """
    if not (np.isfinite(above[0]) and np.isfinite(below[0])):
        return nothing("not_reached")
    with np.errstate(invalid="ignore"):
        draws = above / below
    if n_examples < 2:
        return {
            "value": float(draws[0]), "low": np.nan, "high": np.nan, "outcome": "too_few_examples"
        }  # fmt: skip
    unknown = np.isnan(draws)
    low = np.quantile(np.where(unknown, 0.0, draws)[1:], 0.025, method="inverted_cdf")
    high = np.quantile(np.where(unknown, np.inf, draws)[1:], 0.975, method="inverted_cdf")
    return {"value": float(draws[0]), "low": float(low), "high": float(high), "outcome": "ok"}


def estimate(draws: np.ndarray, n_examples: int) -> dict[str, Any]:
    """A value with its 95% percentile interval.

    Args:
        draws: The estimate, then resamples of it; infinite where it is beyond the curve.
        n_examples: Number of examples behind it.

    Returns:
        Columns of a table; a limit that is not reached is infinite.
    """
    value = float(draws[0])
    if not np.isfinite(value):
        return nothing("not_reached")
    again = draws[1:][~np.isnan(draws[1:])]
    if n_examples < 2 or not len(again):
        return {"value": value, "low": np.nan, "high": np.nan, "outcome": "too_few_examples"}
    # Inverted, because infinite draws can't be interpolated.
    low, high = np.quantile(again, [0.025, 0.975], method="inverted_cdf")
    return {"value": value, "low": float(low), "high": float(high), "outcome": "ok"}
