"""The brittleness ratio: damage of one model over that of another, at equal progress."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from fisherscope.studies.brittleness.paths import ENDS, Paths, crossing, interval, read
from fisherscope.studies.brittleness.request import ALL, NEW

RatioOutcome = Literal[
    "more_brittle", "less_brittle", "not_resolved", "no_damage", "no_progress", "diverged"
]
Criterion = Literal["progress", "level", "same_rate"]


def ratios(
    reference: Paths, other: Paths, old: list[str], criterion: Criterion
) -> list[dict[str, Any]]:
    r"""Damages of two models where they are to be compared, and their ratio.

    - ``"progress"``: where the new task's mean loss has first fallen by P, the largest fall that
      both models make;
    - ``"level"``: where it has first fallen to L, the lowest loss that both models come to;
    - ``"same_rate"``: at the end of the runs.

    P and L are those of the same resample.

    Args:
        reference: Losses of the model in the denominator.
        other: Losses of the model in the numerator.
        old: The old tasks.
        criterion: Where to compare.

    Returns:
        A row for all tasks together (the mean of their damages) and one per task.
    """
    pair = (reference, other)
    if criterion == "progress":
        common = np.maximum(np.minimum(*(p.progress.max(1) for p in pair)), 0.0)
        where = [crossing(p.progress, common) for p in pair]
    elif criterion == "level":
        common = np.maximum(*(p.losses[NEW].min(1) for p in pair))
        where = [crossing(-p.losses[NEW], -common) for p in pair]
    else:
        common = np.full(len(reference.progress), math.nan)
        where = [np.full(len(p.progress), p.progress.shape[1] - 1.0) for p in pair]
    damages = [
        {task: read(p.damage(task), at) for task in old} for p, at in zip(pair, where, strict=True)
    ]
    made = [read(p.progress, at) for p, at in zip(pair, where, strict=True)]
    for one in damages:
        one[ALL] = np.mean([one[task] for task in old], axis=0)
    rows = []
    for task in (ALL, *old):
        row = compare(damages[0][task], damages[1][task])
        if criterion == "progress" and not common[0] > 0:
            row |= no_ratio("no_progress")
        at = {"at": float(common[0]), **_named("reference_progress", made[0])}
        rows.append({"task": task, **row, **at, **_named("progress", made[1])})
    return rows


def compare(reference: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Ratio and difference of two damages.

    There is a ratio only if the damage of the reference is resolved above zero; it is negative
    where the other model gains. A resample in which the reference has none counts as an infinite
    ratio; one in which neither model has any says nothing, and counts against the interval at both
    ends.

    Args:
        reference: Damage of the reference, the estimate and its resamples.
        other: Damage of the other model in the same resamples.

    Returns:
        Columns of a table.
    """
    row: dict[str, Any] = {
        **_named("reference_damage", reference),
        **_named("damage", other),
        **_named("difference", other - reference),
    }
    if not row["reference_damage_low"] > 0:
        return row | no_ratio("no_damage")
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.where(reference > 0, other / reference, np.inf)
    lost = (reference <= 0) & (other <= 0)
    low = np.quantile(np.where(lost, -np.inf, draws)[1:], ENDS[0], method="inverted_cdf")
    high = np.quantile(np.where(lost, np.inf, draws)[1:], ENDS[1], method="inverted_cdf")
    outcome = "more_brittle" if low > 1 else "less_brittle" if high < 1 else "not_resolved"
    return row | {
        "ratio": float(draws[0]),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "outcome": outcome,
    }


def no_ratio(outcome: RatioOutcome) -> dict[str, Any]:
    """A ratio that there is none of.

    Args:
        outcome: Why.

    Returns:
        Columns of a table.
    """
    return {"ratio": math.nan, "ratio_low": math.nan, "ratio_high": math.nan, "outcome": outcome}


def _named(name: str, draws: np.ndarray) -> dict[str, float]:
    value, low, high = interval(draws)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
