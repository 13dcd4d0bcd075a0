"""Fisher and curvature on the way: what stands beside the damage and may explain it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fisherscope.studies.brittleness.paths import ENDS
from fisherscope.studies.brittleness.running import Run

QUANTITIES = ("trace", "top", "first", "second", "measured", "curvature_share", "of_measured")


def geometry(
    start: Mapping[str, Sequence[Mapping[str, Any]]], runs: Mapping[str, Sequence[Run]]
) -> pd.DataFrame:
    r"""Trace, concentration and share of the curvature, mean over seeds.

    The share of the curvature in the predicted change of loss is :math:`\frac12\delta^\top
    F\delta / (|g^\top\delta| + \frac12\delta^\top F\delta)`: 0 if the first order does it all,
    1 if the second does. ``of_measured`` is the second order over the measured change, where
    that is above zero in every run.

    Args:
        start: Model to its rows before any step; these are the same for every seed.
        runs: Model to its runs; those that diverged count up to where they were finite.

    Returns:
        A row per model, task and step: each quantity with a 95% interval of Student over seeds,
        ``n_seeds``.
    """
    rows = []
    for model, own in runs.items():
        looks = [row for run in own for row in run.looks]
        for row in start[model]:
            known = {key: float(row[key]) for key in ("trace", "top")}
            unknown = {key: math.nan for key in QUANTITIES if key not in known}
            ends = {f"{key}{end}": math.nan for key in QUANTITIES for end in ("_low", "_high")}
            place = {"model": model, "task": row["task"]}
            rows.append({**place, "step": 0, **known, **unknown, **ends, "n_seeds": 0})
            mine = [look for look in looks if look["task"] == row["task"]]
            for step in sorted({look["step"] for look in mine}):
                group = [look for look in mine if look["step"] == step]
                rows.append({**place, "step": step, **_summary(group), "n_seeds": len(group)})
    return pd.DataFrame(rows)


def _summary(group: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {
        key: np.array([look[key] for look in group], dtype=float)
        for key in ("trace", "top", "first", "second", "measured")
    }
    second, measured = values["second"], values["measured"]
    with np.errstate(invalid="ignore", divide="ignore"):
        values["curvature_share"] = second / (np.abs(values["first"]) + second)
        values["of_measured"] = np.where((measured > 0).all(), second / measured, np.nan)
    found: dict[str, float] = {}
    for key in QUANTITIES:
        mean, half = float(values[key].mean()), math.nan
        if len(group) > 1:
            spread = values[key].std(ddof=1) / math.sqrt(len(group))
            half = float(stats.t.ppf(ENDS[1], len(group) - 1) * spread)
        found |= {key: mean, f"{key}_low": mean - half, f"{key}_high": mean + half}
    return found
