"""How the tasks fail as more and more units are removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fisherscope.studies.percolation.bench import Bench, Change
from fisherscope.studies.percolation.orders import Ordering
from fisherscope.studies.percolation.units import Units
from fisherscope.studies.percolation.watch import LOSS, Measured, Task

_COARSE = 6


@dataclass(frozen=True, eq=False)
class Curve:
    """One order of removal, all tasks watched.

    Attributes:
        level: What was removed.
        change: What was done to it.
        order: The rule.
        by: The task that the order was read from; empty if it knows of none.
        removed: int64 ``[points]``, ascending from 0 to ``count``.
        count: How many units there are.
        sums: Task to float64 ``[repetitions, points, 3, examples]``.
    """

    level: str
    change: Change
    order: str
    by: str
    removed: np.ndarray
    count: int
    sums: dict[str, np.ndarray]

    @property
    def fractions(self) -> np.ndarray:
        """float64 ``[points]``, the fraction of units removed."""
        return self.removed / self.count


def removal_curve(
    bench: Bench,
    units: Units,
    orderings: Sequence[Ordering],
    change: Change,
    *,
    points: int,
    fractions: Sequence[float] | None,
) -> Curve:
    """Remove units, at given fractions or more of them where the curve bends.

    An adaptive grid is refined on the first ordering; its repetitions are measured at the same
    points.

    Args:
        bench: Where it is measured.
        units: What is removed.
        orderings: One ordering, or its random repetitions.
        change: What is done to the units; noise has another draw for each repetition.
        points: How many fractions, 0 and 1 among them.
        fractions: Fractions between 0 and 1 to measure instead of ``points``; 0 and 1 are added.

    Returns:
        The curve.
    """
    first, tasks = orderings[0], list(bench.watch.tasks)
    aims = [first.by] if first.by in tasks else tasks

    def lost(removed: int) -> np.ndarray:
        found = bench.after(first, removed, units, change, tasks)
        return np.array([progress(found, bench.watch.tasks[name], bench) for name in aims])

    if fractions is None:
        grid = adaptive_grid(lost, units.count, points)
    else:
        grid = given_grid(fractions, units.count)
    rows = []
    for number, one in enumerate(orderings):
        mine = change
        if change.removal == "noise":
            mine = Change(change.removal, change.norm, change.draw + number)
        rows.append([bench.after(one, removed, units, mine, tasks) for removed in grid])
    sums = {name: np.array([[found[name] for found in row] for row in rows]) for name in tasks}
    return Curve(units.level, change, first.order, first.by, np.array(grid), units.count, sums)


def progress(found: Measured, task: Task, bench: Bench) -> float:
    """How far a task has fallen from the intact to the uninformed loss.

    Args:
        found: A measurement.
        task: The task.
        bench: Knows the intact measurement.

    Returns:
        Between 0 and 1.
    """
    total = task.tokens.sum()
    intact = bench.watch.intact[task.name][LOSS].sum() / total
    room = task.uninformed - intact
    if room <= 0:
        return 0.0
    return float(np.clip((found[task.name][LOSS].sum() / total - intact) / room, 0.0, 1.0))


def adaptive_grid(lost: Callable[[int], np.ndarray], count: int, points: int) -> list[int]:
    """Numbers of units to remove: logarithmic from one on, then denser where the loss bends.

    The interval with the largest product of rise and logarithmic width is halved, until there
    are enough points.

    Args:
        lost: How far each task has fallen when so many units are gone.
        count: How many units there are.
        points: How many numbers, if there are as many; at least 3.

    Returns:
        Ascending, from 0 to ``count``.
    """
    coarse = min(points, max(3, min(_COARSE, points)))
    start = np.geomspace(1, count, coarse - 1).round().astype(int).tolist()
    grid = sorted({0, *start, count})
    known = {removed: lost(removed) for removed in grid}
    while len(grid) < min(points, count + 1):
        best, where = (-1.0, -1.0), 0
        for i, (a, b) in enumerate(zip(grid, grid[1:], strict=False)):
            if b - a > 1:
                width = position(b) - position(a)
                rise = float(np.abs(known[b] - known[a]).max())
                best, where = max((best, where), ((rise * width, width), i))
        a, b = grid[where], grid[where + 1]
        middle = round(math.exp((position(a) + position(b)) / 2) - 0.5)
        middle = min(max(middle, a + 1), b - 1)
        known[middle] = lost(middle)
        grid.insert(where + 1, middle)
    return grid


def given_grid(fractions: Sequence[float], count: int) -> list[int]:
    """Numbers of units to remove, from fractions.

    Args:
        fractions: Between 0 and 1.
        count: How many units there are.

    Returns:
        Ascending, from 0 to ``count``.
    """
    return sorted({0, *(round(fraction * count) for fraction in fractions), count})


def position(removed: float | np.ndarray):
    """Where a number of units lies on the logarithmic axis, zero included.

    Args:
        removed: How many, one or an array.

    Returns:
        ``log(removed + ½)``.
    """
    return np.log(np.asarray(removed, dtype=np.float64) + 0.5)
