"""The most critical single units: each candidate really removed, and who had ranked it first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fisherscope.errors import ParameterError
from fisherscope.studies.percolation.bench import Bench, Change
from fisherscope.studies.percolation.functional import Curve
from fisherscope.studies.percolation.orders import Order
from fisherscope.studies.percolation.request import Request
from fisherscope.studies.percolation.threshold import fall
from fisherscope.studies.percolation.units import Units

RANKED: tuple[Order, ...] = ("fisher", "obd", "magnitude", "gradient")


def check_candidates(units: Units, candidates: int) -> None:
    """Refuse more candidates than there are units.

    Args:
        units: The units.
        candidates: How many per order.

    Raises:
        ParameterError: If there are not so many.
    """
    if candidates > units.count:
        raise ParameterError(
            f"candidates={candidates} are more than the model's {units.count} {units.level}s; use "
            f"at most {units.count}"
        )


def critical_units(
    bench: Bench, request: Request, units: Units, by: str, change: Change
) -> pd.DataFrame:
    """Remove the top candidates of every order one by one.

    Args:
        bench: Where it is measured.
        request: The study.
        units: The units.
        by: The task that orders are read from and that is watched.
        change: What is done to a unit.

    Returns:
        One row per candidate, the most costly first: ``cost``, the increase of the loss in nats
        per token with its interval; ``place`` from 1; ``resolved``, whether it costs more than
        the next one in at least 97.5% of the resamples; and ``rank_ORDER``, its rank from 1 in
        each order.
    """
    ranks: dict[str, np.ndarray] = {}
    for order in RANKED:
        if order in ("fisher", "obd") and by not in request.fishers:
            continue
        ranks[order] = request.orderings(order, by, units)[0].places
    chosen = sorted({
        int(unit)
        for places in ranks.values()
        for unit in np.flatnonzero(places < request.options.candidates)
    })
    task = bench.watch.tasks[by]
    states = [bench.watch.intact, *(bench.without_unit(units, u, change, [by]) for u in chosen)]
    sums = {by: np.array([[state[by] for state in states]])}
    removed = np.arange(len(states))
    curve = Curve(units.level, change, "", by, removed, units.count, sums)
    losses = fall(curve, task, request.options.seed).mean
    costs = losses[:, 1:] - losses[:, :1]
    places = np.argsort(-costs[0], kind="stable")
    rows = []
    for place, i in enumerate(places, start=1):
        row: dict[str, Any] = {
            "level": units.level,
            "by": by,
            "place": place,
            "unit": units.name(chosen[i]),
            "cost": costs[0, i],
        }
        row["low"], row["high"] = np.quantile(costs[1:, i], [0.025, 0.975])
        after = costs[1:, places[place]] if place < len(places) else np.full(1, -np.inf)
        row["resolved"] = bool(np.mean(costs[1:, i] > after) >= 0.975)
        row |= {f"rank_{order}": int(rank[chosen[i]]) + 1 for order, rank in ranks.items()}
        rows.append(row)
    return pd.DataFrame(rows)
