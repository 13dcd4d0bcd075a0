"""One length of noise, spread over few weights or many: loss over (fraction, length)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fisherscope.studies.percolation.bench import Bench, Change
from fisherscope.studies.percolation.functional import Curve
from fisherscope.studies.percolation.orders import Ordering
from fisherscope.studies.percolation.threshold import (
    Fall,
    estimate,
    fall,
    halfway,
    nothing,
)
from fisherscope.studies.percolation.units import Units
from fisherscope.studies.percolation.watch import CORRECT, DIVERGENCE, Task

SMALLEST, LARGEST = 0.003, 1.0


def lengths(side: int) -> np.ndarray:
    """Lengths of noise, as fractions of the length of all weights together.

    Args:
        side: How many.

    Returns:
        float64 ``[side]``, ascending.
    """
    return np.geomspace(SMALLEST, LARGEST, side)


def counts(count: int, side: int) -> list[int]:
    """Numbers of units that the noise is spread over.

    Args:
        count: Units in all.
        side: How many numbers.

    Returns:
        Ascending, from 1 to ``count``.
    """
    return sorted(set(np.geomspace(1, count, side).round().astype(int).tolist()))


def plane_curves(
    bench: Bench, units: Units, orderings: list[Ordering], length: float, side: int
) -> list[Curve]:
    """Measure the phase diagram of one order, on the task that it was read from.

    An order that was read from none is measured on all tasks.

    Args:
        bench: Where it is measured.
        units: What the noise is spread over.
        orderings: The order with its repetitions; each has another draw of noise.
        length: Euclidean length of all weights together.
        side: Fractions and lengths.

    Returns:
        One curve per length, over the fractions that the noise is spread over.
    """
    grid = counts(units.count, side)
    by = orderings[0].by
    on = [by] if by in bench.watch.tasks else list(bench.watch.tasks)
    found = []
    for share in lengths(side):
        rows = [
            [
                bench.after(one, removed, units, Change("noise", float(share * length), draw), on)
                for removed in (0, *grid)
            ]
            for draw, one in enumerate(orderings)
        ]
        sums = {name: np.array([[state[name] for state in row] for row in rows]) for name in on}
        first = orderings[0]
        change = Change("noise", float(share))
        removed = np.array([0, *grid])
        found.append(Curve(units.level, change, first.order, first.by, removed, units.count, sums))
    return found


def plane_frames(
    planes: list[list[Curve]], tasks: Mapping[str, Task], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The phase diagram and its critical line.

    Args:
        planes: For each order, one curve per length.
        tasks: The tasks.
        seed: Keys the resampling.

    Returns:
        One row per order, task, fraction and length; and one per order, task and fraction with
        the smallest length at which the loss is halfway to the uninformed one.
    """
    cells, line = [], []
    for curves in planes:
        first = curves[0]
        for name in first.sums:
            task = tasks[name]
            falls = [fall(curve, task, seed) for curve in curves]
            head = {"order": first.order, "by": first.by, "on": name}
            for i, removed in enumerate(first.removed[1:], start=1):
                place = {"removed": int(removed), "fraction": removed / first.count}
                for curve, fell in zip(curves, falls, strict=True):
                    cells.append(head | place | _cell(curve, fell, task, i))
                line.append(head | place | _critical(curves, falls, i))
    return pd.DataFrame(cells), pd.DataFrame(line)


def _cell(curve: Curve, fell: Fall, task: Task, i: int) -> dict[str, Any]:
    losses = fell.mean[:, i]
    low, high = np.quantile(losses[1:], [0.025, 0.975])
    with np.errstate(invalid="ignore"):
        means = curve.sums[task.name][:, i].sum(-1).mean(0) / task.tokens.sum()
    return {
        "norm": curve.change.norm,
        "loss": losses[0],
        "low": low,
        "high": high,
        "accuracy": means[CORRECT],
        "kl": means[DIVERGENCE],
        "lost": float(fell.progress(fell.mean)[0, i]) if fell.informed else np.nan,
    }


def _critical(curves: list[Curve], falls: list[Fall], i: int) -> dict[str, Any]:
    if not falls[0].informed:
        return nothing("no_better_than_uninformed")
    # Lengths from zero on; zero lies one step below the smallest on the logarithmic axis.
    norms = np.log([curve.change.norm for curve in curves])
    x = np.concatenate([[2 * norms[0] - norms[1]], norms])
    intact = np.zeros(len(falls[0].mean))
    y = np.stack([intact, *(fell.progress(fell.mean)[:, i] for fell in falls)], axis=1)
    return estimate(np.exp(halfway(x, y)), falls[0].n_examples)
