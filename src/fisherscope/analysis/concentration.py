"""How few parameters hold how much of the Fisher information."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fisherscope.analysis.access import flat, order
from fisherscope.results import Result
from fisherscope.structures import Fisher

Outcome = Literal["ok", "no_halves", "zero_fisher"]

_TOP = (0.001, 0.01, 0.1)
# Ten fractions per factor of ten; finer than a curve can show.
_GRID = np.logspace(-8, 0, 81)


@dataclass(frozen=True, eq=False)
class Concentration(Result):
    """Share of the trace in the top coordinates.

    Attributes:
        n: Number of coordinates: parameters, or groups of a grouped Fisher.
        n_examples: Number of examples behind the estimate.
        top: Mass of the top 0.1%, 1% and 10% (keys ``"0.001"``, ``"0.01"``, ``"0.1"``); NaN
            where that is less than one coordinate.
        participation: Participation ratio over the number of coordinates,
            ``(sum F)**2 / sum F**2 / n``: 1 if all are equal, ``1/n`` if one has everything.
        participation_halves: The same with ``sum F_1 F_2`` over both halves for ``sum F**2``,
            which doesn't count sampling noise as concentration; NaN without halves.
        outcome: ``"ok"``; ``"no_halves"`` (no band: estimate with ``halves=True``);
            ``"zero_fisher"`` (there is no mass).
        frame: The curve, see :meth:`to_frame`.
    """

    n: int
    n_examples: int
    top: dict[str, float]
    participation: float
    participation_halves: float
    outcome: Outcome
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The curve, from the single largest coordinate to all.

        Returns:
            ``fraction`` of the coordinates; ``k``, their number; ``mass``, the share of the
            trace in the ``k`` largest; ``low`` and ``high``: the smaller and larger of the
            mass in one half of the data of the ``k`` largest of the other half, NaN without
            halves. As coordinates are not chosen by the data that they are measured on, the
            band shows what would hold in new data, and usually lies below ``mass``: the gap
            is the optimism of the curve.
        """
        return self.frame.copy()


def concentration(fisher: Fisher) -> Concentration:
    """How much of the Fisher's trace its largest coordinates hold.

    The curve is exact (all coordinates are sorted), over fractions spaced evenly on a
    logarithmic scale.

    Args:
        fisher: Any Fisher; of a grouped one the groups are the coordinates, of the block
            structures the diagonal is read.

    Returns:
        The curve with a split-half band, and the participation ratio.
    """
    values = flat(fisher)
    n = len(values)
    k = np.unique(np.maximum(1, np.round(_GRID * n).astype(np.int64)))
    mass = _held(np.sort(values)[::-1], k)
    low = high = np.full(len(k), np.nan)
    participation_halves = math.nan
    total = values.sum(dtype=np.float64)
    if fisher.halves is not None:
        first, second = (flat(half) for half in fisher.halves)
        curves = [_held(second[order(first)], k), _held(first[order(second)], k)]
        low, high = np.minimum(*curves), np.maximum(*curves)
        sums = first.sum(dtype=np.float64) * second.sum(dtype=np.float64)
        participation_halves = _ratio(sums, _dot(first, second) * n)
    at = dict(zip(k.tolist(), mass.tolist(), strict=True))
    zero = not total > 0
    return Concentration(
        n=n,
        n_examples=fisher.n_examples,
        top={str(f): at[round(f * n)] if round(f * n) else math.nan for f in _TOP},
        participation=_ratio(total**2, _dot(values, values) * n),
        participation_halves=participation_halves,
        outcome="zero_fisher" if zero else "ok" if fisher.halves is not None else "no_halves",
        frame=pd.DataFrame({"fraction": k / n, "k": k, "mass": mass, "low": low, "high": high}),
    )


def _held(ordered: np.ndarray, k: np.ndarray) -> np.ndarray:
    # Share of the whole in the first k entries, for increasing k up to all.
    starts = np.concatenate([[0], k[:-1]])
    sums = np.array([
        ordered[start:stop].sum(dtype=np.float64) for start, stop in zip(starts, k, strict=True)
    ])
    held = np.cumsum(sums)
    with np.errstate(invalid="ignore"):
        return held / held[-1]


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    chunk = 1 << 16
    return sum(
        float(x[i : i + chunk].astype(np.float64) @ y[i : i + chunk].astype(np.float64))
        for i in range(0, len(x), chunk)
    )


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else math.nan
