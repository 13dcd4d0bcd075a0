"""Learning rates at which all models make the same progress on the new task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

REFINEMENTS, TOLERANCE = 3, 0.02
# A refined rate keeps away from the ends of its bracket, which are known already.
_EDGE = 0.1

Attainable = Callable[[str, float], float]


@dataclass(frozen=True, eq=False)
class Rates:
    """What the search found.

    Attributes:
        table: A row per run of the search: ``model``, ``rate``, ``progress`` (fall of the new
            task's loss at the end, nats per token; NaN if the training diverged), ``stage``
            (``"grid"`` or ``"refined"``), ``chosen``.
        goal: Progress that is matched, nats per token; NaN if some model makes none.
        chosen: Model to rate; empty if some model makes no progress.
        stuck: Models that made no progress at any rate.
    """

    table: pd.DataFrame
    goal: float
    chosen: dict[str, float]
    stuck: tuple[str, ...]


def search(
    models: Sequence[str], rates: Sequence[float], share: float, progress: Attainable
) -> Rates:
    r"""Match learning rates by progress, in a bounded number of runs.

    Every model is tuned once with every rate. A model's attainable progress is the largest fall
    of the new task's loss at the end of a run, the common one the smallest of these, and the goal
    a share of that. For each model the lowest rate of the grid that reaches the goal and the one
    below it (no rate at all, if it is the lowest) bracket the goal; up to three more runs
    interpolate in between, until one is within 2% of the goal. The rate of the run nearest to
    the goal is taken.

    Args:
        models: Names.
        rates: The grid.
        share: Of the common attainable progress.
        progress: From model and rate to the fall of the new task's loss.

    Returns:
        The rates, and every run behind them.
    """
    grid = sorted(rates)
    tried = {m: {rate: progress(m, rate) for rate in grid} for m in models}
    best = {
        m: max((v for v in falls.values() if v == v), default=0.0) for m, falls in tried.items()
    }
    stuck = tuple(m for m in models if not best[m] > 0)
    chosen: dict[str, float] = {}
    goal = math.nan
    if not stuck:
        goal = share * min(best.values())
        for model in models:
            chosen[model] = _match(goal, tried[model], lambda rate, m=model: progress(m, rate))
    rows = [
        {
            "model": model,
            "rate": rate,
            "progress": fall,
            "stage": "grid" if rate in grid else "refined",
            "chosen": chosen.get(model) == rate,
        }
        for model, falls in tried.items()
        for rate, fall in sorted(falls.items())
    ]
    return Rates(pd.DataFrame(rows), goal, chosen, stuck)


def _match(goal: float, tried: dict[float, float], progress: Callable[[float], float]) -> float:
    """The rate nearest to the goal; what is tried on the way is added to ``tried``."""
    grid = sorted(tried)
    high = next(rate for rate in grid if tried[rate] >= goal)
    low = max((rate for rate in grid if rate < high and tried[rate] == tried[rate]), default=0.0)
    for _ in range(REFINEMENTS):
        if min(abs(fall - goal) for fall in tried.values() if fall == fall) <= TOLERANCE * goal:
            break
        rate = _between(low, high, tried.get(low, 0.0), tried[high], goal)
        tried[rate] = progress(rate)
        if tried[rate] >= goal:
            high = rate
        elif tried[rate] < goal:
            low = rate
        else:  # diverged between two rates that did not
            break
    known = [rate for rate in sorted(tried) if tried[rate] == tried[rate]]
    return min(known, key=lambda rate: abs(tried[rate] - goal))


def _between(low: float, high: float, below: float, above: float, goal: float) -> float:
    part = float(np.clip((goal - below) / (above - below), _EDGE, 1 - _EDGE))
    return low + part * (high - low) if low == 0 else low ** (1 - part) * high**part
