"""Numbers that were found once per seed: their mean, its interval, and what a difference says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["better", "worse", "not_resolved", "too_few_seeds"]


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds.

    Attributes:
        value: The mean; NaN without any number.
        low: Lower end of Student's 95% interval of the mean; NaN of fewer than two numbers.
        high: Its upper end.
        n: How many numbers there are.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> Verdict:
        """What it says if it is a difference of losses: better is less."""
        if self.n < 2:
            return "too_few_seeds"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "not_resolved"

    def named(self, key: str) -> dict[str, Any]:
        """As columns of a table.

        Args:
            key: Name of the mean's column.

        Returns:
            The mean, and its ends under the same name with ``_low`` and ``_high``.
        """
        return {key: self.value, f"{key}_low": self.low, f"{key}_high": self.high}


def over_seeds(values: ArrayLike) -> OverSeeds:
    """Mean with Student's 95% interval, over whatever seeds have a number.

    Args:
        values: One number per seed; those that are not finite are left out.

    Returns:
        Mean, interval and count.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    n = len(kept)
    if not n:
        return OverSeeds(math.nan, math.nan, math.nan, 0)
    value = float(kept.mean())
    if n == 1:
        return OverSeeds(value, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.975, n - 1) * kept.std(ddof=1) / math.sqrt(n))
    return OverSeeds(value, value - half, value + half, n)
