"""How alike two vectors of non-negative numbers are, in five metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Literal

import numpy as np

from fisherscope.analysis.access import doubled_ranks, top

Metric = Literal["cosine", "pearson", "spearman", "jaccard", "bhattacharyya"]

# Elements widened to float64 at a time: few enough to stay in the processor's cache.
CHUNK = 1 << 16


class Vector:
    """A vector with what the metrics need of it alone.

    Attributes:
        values: The vector, non-negative, without NaN.
        k: Number of coordinates in its top set.
        top: Boolean vector that marks the top set; coordinates that are zero are in none.
        total: Sum of the values.
        mean: Mean of the values.
        norm: Euclidean norm.
        spread: Euclidean norm of what differs from the mean.
    """

    def __init__(self, values: np.ndarray, k_fraction: float) -> None:
        """Read a vector once.

        Args:
            values: The vector, non-negative, without NaN.
            k_fraction: Size of the top set as a fraction of its length.
        """
        self.values = values
        self.k = max(1, round(k_fraction * len(values)))
        self.top = top(values, self.k) & (values > 0)
        self.total = float(values.sum(dtype=np.float64))
        self.mean = self.total / len(values)
        self.norm = math.sqrt(sum(float(x @ x) for x in _wide(values)))
        self.spread = math.sqrt(sum(float(x @ x) for x in _wide(values, self.mean)))

    @cached_property
    def ranks(self) -> np.ndarray:
        """Twice the ascending ranks, ties sharing their mean rank."""
        return doubled_ranks(self.values)

    @property
    def mean_rank(self) -> float:
        """Mean of ``ranks``."""
        return len(self.values) + 1.0

    @cached_property
    def rank_spread(self) -> float:
        """Euclidean norm of what differs from the mean rank."""
        return math.sqrt(sum(float(x @ x) for x in _wide(self.ranks, self.mean_rank)))


def agreement(a: Vector, b: Vector) -> dict[Metric, float]:
    """The five metrics of two vectors, see :func:`fisherscope.similarity`.

    Args:
        a: A vector.
        b: A vector of the same length.

    Returns:
        Metric to value; NaN where it is 0/0.
    """
    dot = centred = ranked = roots = 0.0
    for x, y in zip(_wide(a.values), _wide(b.values), strict=True):
        dot += float(x @ y)
        centred += float((x - a.mean) @ (y - b.mean))
        roots += float(np.sqrt(x) @ np.sqrt(y))
    for x, y in zip(_wide(a.ranks, a.mean_rank), _wide(b.ranks, b.mean_rank), strict=True):
        ranked += float(x @ y)
    return metrics(a, b, dot, centred, ranked, roots, int((a.top & b.top).sum()))


def chance(a: Vector, b: Vector, places: Iterable[slice]) -> dict[Metric, float]:
    """The metrics that two vectors have on average if one is permuted within each part.

    Args:
        a: A vector.
        b: A vector of the same length.
        places: Disjoint slices that cover both: the parts.

    Returns:
        Metric to its mean over all such permutations, exactly; for the Jaccard index, which
        is a ratio, that of the mean intersection.
    """
    dot = ranked = roots = both = 0.0
    for place in places:
        n = place.stop - place.start
        dot += _sum(a.values[place]) * _sum(b.values[place]) / n
        ranked += _sum(a.ranks[place], a.mean_rank) * _sum(b.ranks[place], b.mean_rank) / n
        roots += _sum(np.sqrt(a.values[place])) * _sum(np.sqrt(b.values[place])) / n
        both += float(a.top[place].sum()) * float(b.top[place].sum()) / n
    centred = dot - len(a.values) * a.mean * b.mean
    return metrics(a, b, dot, centred, ranked, roots, both)


def metrics(
    a: Vector, b: Vector, dot: float, centred: float, ranked: float, roots: float, both: float
) -> dict[Metric, float]:
    """The metrics of two vectors from what depends on both of them.

    Args:
        a: A vector.
        b: A vector of the same length.
        dot: Inner product of the values.
        centred: Inner product of the values less their means.
        ranked: Inner product of the doubled ranks less their means.
        roots: Inner product of the square roots of the values.
        both: Size of the intersection of the top sets.

    Returns:
        Metric to value; NaN where it is 0/0.
    """
    return {
        "cosine": _over(dot, a.norm * b.norm),
        "pearson": _over(centred, a.spread * b.spread),
        "spearman": _over(ranked, a.rank_spread * b.rank_spread),
        "jaccard": _over(both, int(a.top.sum()) + int(b.top.sum()) - both),
        "bhattacharyya": _over(roots, math.sqrt(a.total * b.total)),
    }


def _wide(values: np.ndarray, centre: float = 0.0) -> Iterator[np.ndarray]:
    # The vector in float64 pieces, a number subtracted.
    for start in range(0, len(values), CHUNK):
        piece = values[start : start + CHUNK].astype(np.float64)
        yield piece - centre if centre else piece


def _sum(values: np.ndarray, centre: float = 0.0) -> float:
    return sum(float(piece.sum()) for piece in _wide(values, centre))


def _over(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator > 0 else math.nan
