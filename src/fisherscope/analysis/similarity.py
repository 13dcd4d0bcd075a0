"""How alike two tasks' Fishers are, between a ceiling and a floor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from fisherscope.analysis.access import extents, flat
from fisherscope.analysis.agreement import CHUNK, Metric, Vector, agreement, metrics
from fisherscope.analysis.matrices import matrix_agreement
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.results import Result
from fisherscope.structures import BlockwiseFisher, Fisher
from fisherscope.structures.diagonal import COMPARABLE

Outcome = Literal["ok", "no_halves", "zero_fisher"]

_LEVEL = 0.95
_FEWEST = 19


@dataclass(frozen=True, eq=False)
class Similarity(Result):
    """Similarity of two Fishers in several metrics, each with a ceiling and a floor.

    Attributes:
        k: Number of coordinates in each top set of the Jaccard index; 0 for block structures.
        n: Number of coordinates compared: parameters, or groups of grouped Fishers.
        n_a: Number of examples behind the first Fisher.
        n_b: Number of examples behind the second.
        permutations: Number of permutations behind the floor; 0 for block structures.
        outcome: ``"ok"``; ``"no_halves"`` (no ceiling and no cross-half values: estimate
            both with ``halves=True``); ``"zero_fisher"`` (one of them is zero everywhere,
            and nothing can be said).
        frame: One row per metric, see :meth:`to_frame`.
        blocks: For block structures one row per block, see :func:`matrix_agreement`; otherwise
            ``None``.
    """

    k: int
    n: int
    n_a: int
    n_b: int
    permutations: int
    outcome: Outcome
    frame: pd.DataFrame
    blocks: pd.DataFrame | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row per metric.

        Returns:
            ``metric``; ``value``, on all examples of both tasks; ``halves``, ``low`` and
            ``high``: mean, smallest and largest over the four pairs of a half of one task
            and a half of the other (not a confidence interval of ``value``, which has twice
            the data); ``ceiling``: between two disjoint halves of the *same* task, mean of
            the two tasks, what identical tasks would reach with that much data, so compare
            it with ``halves``; ``floor`` and ``floor_high``: mean and 95% limit if the two
            tasks had nothing in common but which tensors are large; ``n_a``, ``n_b``.
            NaN where there are no halves.
        """
        return self.frame.copy()

    def value(self, metric: Metric) -> float:
        """The similarity on all examples.

        Args:
            metric: Name of a metric.

        Returns:
            The value.

        Raises:
            ParameterError: If there is no such metric, or not for these Fishers.
        """
        if metric not in get_args(Metric):
            raise ParameterError(f"metric={metric!r} is unknown; use {list(get_args(Metric))}.")
        values = dict(zip(self.frame["metric"], self.frame["value"], strict=True))
        if metric not in values:
            raise ParameterError(
                f"metric={metric!r} is not defined for these matrices, which have {list(values)}: "
                "ranks and top sets are of single parameters (compare Fishers of "
                'structure="diagonal"), and the overlap of two EKFACs needs equal eigenvectors '
                "(estimate both with the same basis=)."
            )
        return float(values[metric])


def similarity(
    fisher_a: Fisher,
    fisher_b: Fisher,
    *,
    k_fraction: float = 0.01,
    seed: int = 0,
    permutations: int = 20,
    across_models: bool = False,
) -> Similarity:
    r"""How alike the Fishers of two tasks are.

    Diagonals (and groups' sums) are compared as vectors, in five metrics:
    ``cosine`` and ``pearson`` are carried by the few largest coordinates, ``spearman`` (ties
    share their mean rank) counts all alike. ``jaccard`` is the size of the intersection over
    that of the union of the ``k`` largest coordinates of each; of equal values the lower
    index comes first, and coordinates that are exactly zero are in no top set.
    ``bhattacharyya`` is the overlap of Kirkpatrick et al., :math:`1 - d^2` with
    :math:`d^2 = \tfrac12 \| \hat F_a^{1/2} - \hat F_b^{1/2} \|^2` and both traces scaled to
    one, that is :math:`\sum_i \sqrt{a_i b_i} / \sqrt{\sum_i a_i \sum_i b_i}`.

    The block structures (KFAC, EKFAC, per tensor or layer, dense) are compared as matrices:
    ``cosine`` with Frobenius products, and ``bhattacharyya`` in its full form, :math:`d^2 =
    \tfrac12 \mathrm{tr} (\hat F_a + \hat F_b - 2 (\hat F_a^{1/2} \hat F_b \hat
    F_a^{1/2})^{1/2})`, exactly: of Kronecker products it is the product over the factors. Two
    EKFACs have it only in one basis. ``blocks`` of the result has both per layer. There is no
    floor: permuted parameters would leave the structure.

    Neither one nor zero is what to compare a value with. *Ceiling*: two estimates of one
    task from different examples are not equal either. It and the cross-half values need
    Fishers with ``halves``. *Floor*: the tensors of a model differ in scale for every task,
    so Fishers that share nothing else are still alike. It is the similarity after permuting
    one Fisher uniformly at random within each tensor. ``floor_high`` is the smallest of the
    permuted values that a further one exceeds with a probability of at most 5%; it needs at
    least 19 permutations and is NaN otherwise. Both Fishers are shuffled once within each
    tensor, and one of them is then turned by one more place for each permutation: each is
    uniformly random, and any two are nearly independent.

    Args:
        fisher_a: A Fisher.
        fisher_b: A Fisher of the same kind and parameters. Grouped ones are compared over
            their groups' sums.
        k_fraction: Size of the top sets as a fraction of all coordinates. Default: ``0.01``.
        seed: Seed of the permutations. Default: ``0``.
        permutations: Number of permutations; ``0`` leaves the floor out. Default: ``20``.
        across_models: Allow Fishers of different weights (checkpoints, or tuned models of
            the same architecture). Default: ``False``.

    Returns:
        The five metrics with ceiling and floor.

    Raises:
        ParameterError: If ``k_fraction`` or ``permutations`` is out of range.
        IdentityError: If the two differ in parameters, unit, fisher_type, structure,
            likelihood, groups, or (unless ``across_models``) the model.

    Source:
        Kirkpatrick et al.: Overcoming catastrophic forgetting in neural networks (2017),
        supplementary section 4.3, for the overlap.
    """
    if not 0 < k_fraction <= 1:
        raise ParameterError(f"k_fraction={k_fraction!r} must be above 0 and at most 1.")
    if permutations < 0:
        raise ParameterError(f"permutations={permutations!r} must be at least 0.")
    ignored = (*COMPARABLE, *(("model_fingerprint", "dtype") if across_models else ()))
    if isinstance(fisher_a, BlockwiseFisher) and isinstance(fisher_b, BlockwiseFisher):
        return _of_matrices(fisher_a, fisher_b, ignored)
    fisher_a.identity.check(fisher_b.identity, ignore=ignored)
    for name in fisher_a.identity.parameters:
        mine, theirs = tuple(fisher_a.sums[name].shape), tuple(fisher_b.sums[name].shape)
        if mine != theirs:
            raise IdentityError(
                f"{name!r} is grouped as {mine} and {theirs}; estimate both with the same groups."
            )

    a, b = Vector(flat(fisher_a), k_fraction), Vector(flat(fisher_b), k_fraction)
    value = agreement(a, b)
    floor = _floor(a, b, list(extents(fisher_a).values()), permutations, seed)
    cross: list[dict[Metric, float]] = []
    ceilings: list[dict[Metric, float]] = []
    if fisher_a.halves is not None and fisher_b.halves is not None:
        # One task's halves at a time would save memory, but each is ranked only once so.
        of_a = [Vector(flat(half), k_fraction) for half in fisher_a.halves]
        of_b = [Vector(flat(half), k_fraction) for half in fisher_b.halves]
        cross = [agreement(x, y) for x in of_a for y in of_b]
        ceilings = [agreement(*of_a), agreement(*of_b)]

    zero = not (a.total > 0 and b.total > 0)
    return Similarity(
        k=a.k,
        n=len(a.values),
        n_a=fisher_a.n_examples,
        n_b=fisher_b.n_examples,
        permutations=permutations,
        outcome="zero_fisher" if zero else "ok" if cross else "no_halves",
        frame=_frame(fisher_a, fisher_b, value, cross, ceilings, floor),
    )


def _of_matrices(a: BlockwiseFisher, b: BlockwiseFisher, ignored: tuple[str, ...]) -> Similarity:
    value, blocks = matrix_agreement(a, b, ignore=ignored)
    cross: list[dict[Metric, float]] = []
    ceilings: list[dict[Metric, float]] = []
    if a.halves is not None and b.halves is not None:
        pairs = [(x, y) for x in a.halves for y in b.halves]
        cross = [matrix_agreement(x, y, ignore=ignored)[0] for x, y in pairs]
        ceilings = [matrix_agreement(*f.halves, ignore=ignored)[0] for f in (a, b) if f.halves]
    zero = not (a.trace() > 0 and b.trace() > 0)
    return Similarity(
        k=0,
        n=a.n_parameters,
        n_a=a.n_examples,
        n_b=b.n_examples,
        permutations=0,
        outcome="zero_fisher" if zero else "ok" if cross else "no_halves",
        frame=_frame(a, b, value, cross, ceilings, []),
        blocks=blocks,
    )


def _frame(
    a: Fisher,
    b: Fisher,
    value: dict[Metric, float],
    cross: list[dict[Metric, float]],
    ceilings: list[dict[Metric, float]],
    floor: list[dict[Metric, float]],
) -> pd.DataFrame:
    rows = []
    for metric in value:
        crossed = [c.get(metric, math.nan) for c in cross] or [math.nan]
        permuted = [f[metric] for f in floor]
        limits = [c.get(metric, math.nan) for c in ceilings] or [math.nan]
        rows.append({
            "metric": metric,
            "value": value[metric],
            "halves": float(np.mean(crossed)),
            "low": min(crossed),
            "high": max(crossed),
            "ceiling": float(np.mean(limits)),
            "floor": float(np.mean(permuted)) if permuted else math.nan,
            "floor_high": _limit(permuted),
            "n_a": a.n_examples,
            "n_b": b.n_examples,
        })
    return pd.DataFrame(rows)


def _floor(
    a: Vector, b: Vector, places: list[slice], permutations: int, seed: int
) -> list[dict[Metric, float]]:
    # The five metrics after each permutation within tensors.
    if not permutations:
        return []
    rng = np.random.default_rng(seed)
    # Products of values, of centred ranks, of square roots: all that a permutation changes.
    products = np.zeros((3, permutations))
    both = np.zeros(permutations)
    for place in places:
        n = place.stop - place.start
        products += _permuted(a, b, place, permutations, rng)
        # The size of the intersection of two random subsets needs no shuffling.
        inside_a, inside_b = int(a.top[place].sum()), int(b.top[place].sum())
        both += rng.hypergeometric(inside_a, n - inside_a, inside_b, size=permutations)

    shared = len(a.values) * a.mean * b.mean
    return [
        metrics(a, b, dot, dot - shared, ranked, roots, both[turn])
        for turn, (dot, ranked, roots) in enumerate(products.T.tolist())
    ]


def _permutation(n: int, rng: np.random.Generator) -> np.ndarray:
    # Sorting random numbers that carry an index in their low bits is several times faster
    # than drawing a permutation, and with 64 bits as good.
    bits = np.uint64(max(n, 1).bit_length())
    keys = rng.integers(2**64, size=n, dtype=np.uint64)
    keys >>= bits
    keys <<= bits
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def _permuted(
    a: Vector, b: Vector, place: slice, turns: int, rng: np.random.Generator
) -> np.ndarray:
    # Inner products of both vectors in random order, the second turned cyclically by 0, 1, ...
    # places. With x cut into rows of as many numbers as there are turns, they are the sums
    # along the diagonals of two matrix products: one reading of the vectors gives them all.
    n = place.stop - place.start
    first, second = _permutation(n, rng), _permutation(n, rng)
    products = np.zeros((3, turns))
    step = turns * (CHUNK // turns + 1)
    for start in range(0, n, step):
        here = first[start : start + step]
        rows = -(-len(here) // turns)
        ahead = second[start : start + (rows + 1) * turns]
        ahead = np.append(ahead, np.resize(second, (rows + 1) * turns - len(ahead)))
        for kind, (x, y) in enumerate(
            zip(_columns(a, place, here), _columns(b, place, ahead), strict=True)
        ):
            blocks = np.zeros(rows * turns)
            blocks[: len(x)] = x
            across = blocks.reshape(rows, turns).T
            near = across @ y[:-turns].reshape(rows, turns)
            far = across @ y[turns:].reshape(rows, turns)
            products[kind] += [near.trace(t) + far.trace(t - turns) for t in range(turns)]
    return products


def _columns(vector: Vector, place: slice, sequence: np.ndarray) -> Iterator[np.ndarray]:
    values = vector.values[place][sequence].astype(np.float64)
    yield values
    yield vector.ranks[place][sequence].astype(np.float64) - vector.mean_rank
    yield np.sqrt(values)


def _limit(permuted: list[float]) -> float:
    # The order statistic that a further permutation exceeds with at most 5% probability.
    if len(permuted) < _FEWEST:
        return math.nan
    return sorted(permuted)[math.ceil(_LEVEL * (len(permuted) + 1)) - 1]
