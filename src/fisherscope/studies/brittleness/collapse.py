"""The step at which an old task collapses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fisherscope.studies.brittleness.paths import ENDS, Paths, crossing, read
from fisherscope.studies.brittleness.running import Run

CollapseOutcome = Literal["ok", "not_reached", "no_better_than_uninformed", "diverged"]


def collapse(
    paths: Paths | None, runs: Sequence[Run], task: str, uninformed: float, share: float
) -> dict[str, Any]:
    """When a task has lost a share of what the intact model knows of it.

    The way from the intact loss to that of a model that ignores its input is 1; the step is where
    the mean loss over seeds has first gone ``share`` of it, between two measurements on the
    straight line. In resamples in which that does not happen within the run the step is infinite.

    Args:
        paths: Mean losses and their resamples; ``None`` if fewer than three runs came through.
        runs: The same runs and the diverged ones, to count those that collapsed: a run that
            diverged did.
        task: An old task.
        uninformed: Loss of a model that ignores its input.
        share: Of the way.

    Returns:
        Columns of a table: ``step`` with its interval (infinite beyond the run), ``intact`` and
        ``uninformed`` loss, ``lost`` (share of the way that is lost at the end), ``collapsed`` of
        ``runs``, ``outcome``.
    """
    shared = {
        "uninformed": uninformed,
        "collapsed": sum(_collapsed(run, task, uninformed, share) for run in runs),
        "runs": len(runs),
    }
    if paths is None:
        return {**_nothing("diverged"), "intact": math.nan, "lost": math.nan, **shared}
    intact = paths.losses[task][:, :1]
    shared["intact"] = float(intact[0, 0])
    if not (intact[0, 0] < uninformed and np.mean(intact < uninformed) >= ENDS[1]):
        return {**_nothing("no_better_than_uninformed"), "lost": math.nan, **shared}
    way = paths.damage(task) / (uninformed - intact)
    shared["lost"] = float(way[0, -1])
    where = crossing(way, np.full(len(way), share))
    reached = np.isfinite(where)
    steps = np.full(len(way), np.inf)
    along = np.broadcast_to(paths.steps.astype(float), way.shape)
    steps[reached] = read(along[reached], where[reached])
    low, high = np.quantile(steps[1:], ENDS, method="inverted_cdf")
    return {
        "step": float(steps[0]),
        "low": float(low),
        "high": float(high),
        "outcome": "ok" if reached[0] else "not_reached",
        **shared,
    }


def _collapsed(run: Run, task: str, uninformed: float, share: float) -> bool:
    if run.outcome != "ok":
        return True
    mean = run.losses[task].sum(1) / run.tokens[task].sum()
    return bool(((mean - mean[0]) >= share * (uninformed - mean[0])).any()) and (
        mean[0] < uninformed
    )


def _nothing(outcome: CollapseOutcome) -> dict[str, Any]:
    return {"step": math.nan, "low": math.nan, "high": math.nan, "outcome": outcome}
