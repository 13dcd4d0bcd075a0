"""Predictions against measurements: rank, slope, and the error of the curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from fisherscope.structures.intervals import resamples

ENDS = (0.025, 0.975)
FULL = "full"


@dataclass(frozen=True, eq=False)
class Point:
    """One displacement of one task: what was predicted of it, and what happened.

    Attributes:
        task: The task that is watched; points of a task share its resamples.
        scale: Size of the step, in whatever unit all points share.
        tokens: Tokens of each example [n].
        first: First order of each example, nats.
        second: Second order of each example in full, nats.
        measured: Change of each example's loss, nats.
        stored: Method to its second order, nats per token.
    """

    task: str
    scale: float
    tokens: np.ndarray
    first: np.ndarray
    second: np.ndarray
    measured: np.ndarray
    stored: dict[str, float]


def calibrate(points: Sequence[Point], *, seed: int = 0) -> pd.DataFrame:
    r"""How well each method predicts, over all points together.

    Three numbers per method, each with a 95% interval from resampling the examples of each task,
    all points of a task together:

    - ``spearman``: rank correlation of predicted and measured change;
    - ``slope``: least squares through the origin of measured on predicted, every point divided by
      its scale, so that large steps do not drown the small ones;
    - ``log_error``: mean of :math:`|\log(\text{second order} / (\text{measured} -
      \text{first order}))|`, the curvature alone, over the points at which the measured curvature
      is positive (``n_curved`` of them).

    Args:
        points: Any number; none gives no rows.
        seed: Of the resamples. Default: 0.

    Returns:
        One row per method: ``method``, the three numbers with ``_low`` and ``_high``, ``ratio``
        (median predicted over measured curvature), ``n`` points, ``n_curved``.
    """
    if not points:
        return pd.DataFrame()
    weights = _resamples(points, seed)
    first, second, measured = (
        np.stack([_means(p, getattr(p, name), weights[p.task]) for p in points])
        for name in ("first", "second", "measured")
    )  # [points, 1 + resamples], the estimate in front
    scales = np.array([abs(p.scale) for p in points])[:, None]
    rows = []
    for method in [FULL, *points[0].stored]:
        bent = second
        if method != FULL:
            bent = np.broadcast_to(
                np.array([p.stored[method] for p in points])[:, None], second.shape
            )
        predicted = first + bent
        row: dict[str, Any] = {"method": method}
        values = {
            "spearman": _spearman(predicted, measured),
            "slope": _slope(predicted / scales, measured / scales),
            "log_error": _log_error(bent, measured - first),
        }
        for name, value in values.items():
            row[name] = value[0]
            spread = value[1:][np.isfinite(value[1:])]
            ends = np.quantile(spread, ENDS) if len(spread) else (np.nan, np.nan)
            row[f"{name}_low"], row[f"{name}_high"] = ends
        curved = (measured[:, 0] - first[:, 0]) > 0
        ratio = bent[:, 0][curved] / (measured[:, 0] - first[:, 0])[curved]
        row["ratio"] = float(np.median(ratio)) if curved.any() else np.nan
        rows.append(row | {"n": len(points), "n_curved": int(curved.sum())})
    return pd.DataFrame(rows)


def calibrate_by_scale(
    points: Sequence[Point], *, small: float = math.inf, seed: int = 0
) -> pd.DataFrame:
    """:func:`calibrate` over all small steps together, and at each size of step alone.

    Args:
        points: Any number; none gives no rows.
        small: Largest scale that counts for the rows over all. Default: every one does.
        seed: Of the resamples. Default: 0.

    Returns:
        The rows over all, whose ``scale`` is missing, then those of each scale.
    """
    parts = []
    for scale in [None, *sorted({p.scale for p in points})]:
        some = [p for p in points if (p.scale <= small if scale is None else p.scale == scale)]
        frame = calibrate(some, seed=seed)
        frame.insert(0, "scale", math.nan if scale is None else scale)
        parts.append(frame)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def points_of(
    task: str, examples: pd.DataFrame, table: pd.DataFrame, unit: dict[str, float]
) -> list[Point]:
    """The points of a damage.

    Args:
        task: The task that was watched.
        examples: :attr:`fisherscope.Damage.examples`.
        table: :attr:`fisherscope.Damage.table`, in which columns after ``n_tokens`` are none.
        unit: Displacement to the scale that counts as one of it.

    Returns:
        One per row of ``table`` whose scale is not zero.
    """
    known = {"displacement", "scale", "first", "second", "unit", "n_examples", "n_tokens"}
    known |= {f"{a}{b}" for a in ("predicted", "measured", "error") for b in ("", "_low", "_high")}
    groups = dict(iter(examples.groupby(["displacement", "scale"], sort=False)))
    points = []
    for row in table.to_dict("records"):
        if not row["scale"]:
            continue
        group = groups[row["displacement"], row["scale"]]
        columns = {
            name: group[name].to_numpy(float) for name in ("tokens", "first", "second", "measured")
        }
        stored = {str(k): v - row["first"] for k, v in row.items() if k not in known}
        scale = row["scale"] * unit[row["displacement"]]
        points.append(Point(task, scale, stored=stored, **columns))
    return points


def _resamples(points: Sequence[Point], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {p.task: len(p.tokens) for p in points}
    return {task: resamples(n, rng, itself=True) for task, n in sizes.items()}


def _means(point: Point, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ values) / (weights @ point.tokens)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (rankdata(x, axis=0) for x in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def _slope(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (predicted * measured).sum(0) / (predicted**2).sum(0)


def _log_error(bent: np.ndarray, actual: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.where((actual > 0) & (bent > 0), np.abs(np.log(bent / actual)), np.nan)
        counts = np.isfinite(errors).sum(0)
        return np.where(counts > 0, np.nansum(errors, axis=0) / np.maximum(counts, 1), np.nan)
