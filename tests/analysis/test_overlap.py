import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.builders import draw, fisher_of
from fisherscope.analysis import masks, overlap
from fisherscope.errors import IdentityError, ParameterError


def _mask(*bits):
    return torch.tensor(bits, dtype=torch.bool)


def test_overlap_of_known_masks():
    # Would catch: overlap over all elements (identical masks would give their density), or
    # over the removed set.
    a = {"x": _mask(1, 1, 0, 0), "y": _mask(1, 0)}
    b = {"x": _mask(1, 0, 1, 1), "y": _mask(1, 0)}
    found = overlap(a, b)
    assert (found.n, found.kept_a, found.kept_b, found.both) == (6, 3, 4, 2)
    assert found.jaccard == pytest.approx(2 / 5)
    assert found.smaller == pytest.approx(2 / 3)
    assert found.smaller_chance == pytest.approx(4 / 6)
    frame = found.to_frame().set_index("tensor")
    assert frame["jaccard"].to_dict() == {"x": 1 / 4, "y": 1.0}
    assert found.excess == pytest.approx(found.jaccard - found.chance)
    same = overlap(a, a)
    assert (same.jaccard, same.smaller) == (1, 1)
    opposite = overlap(a, {name: ~mask for name, mask in a.items()})
    assert (opposite.jaccard, opposite.smaller) == (0, 0)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_identical_masks_overlap_completely_whatever_their_density(sparsity):
    # Would catch: the intersection over all elements, under which identical masks overlap by
    # their density: 0.5 at a sparsity of 0.5, and 0.1 (measured once as 0.117) at 0.9.
    found = masks(fisher_of(draw({"a.weight": (30, 20), "b.weight": (7, 9)})), sparsity)
    same = overlap(found, {name: mask.clone() for name, mask in found.items()})
    assert same.jaccard == same.smaller == 1
    assert same.kept_a / same.n == pytest.approx(1 - sparsity, abs=1e-3)
    assert same.excess == pytest.approx(1 - same.chance)
    frame = same.to_frame()
    kept = frame["kept_a"] > 0
    assert (frame["jaccard"][kept] == 1).all()
    assert {"jaccard", "smaller", "chance", "excess", "smaller_chance"} <= set(frame)


def test_one_mask_within_the_other_overlaps_the_smaller_completely():
    # Would catch: the larger of the two, or the union, as the denominator of ``smaller``.
    fisher = fisher_of(draw({"a.weight": (30, 20), "b.weight": (7, 9)}))
    found = overlap(masks(fisher, 0.9), masks(fisher, 0.5))
    assert found.smaller == 1
    assert found.jaccard == pytest.approx(found.kept_a / found.kept_b)


@settings(deadline=None)
@given(st.integers(1, 7), st.data())
def test_chance_against_all_pairs_of_subsets(n, data):
    # Would catch: a ratio of expectations given for the expectation of the ratio.
    ka, kb = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    a = set(range(ka))
    pairs = [(a, set(c)) for c in itertools.combinations(range(n), kb)]
    found = overlap({"x": torch.arange(n) < ka}, {"x": torch.arange(n) < kb})
    if not ka + kb:
        assert np.isnan(found.chance)
        return
    assert found.chance == pytest.approx(np.mean([len(p & q) / len(p | q) for p, q in pairs]))
    assert found.chance_within == pytest.approx(found.chance)
    if min(ka, kb):
        expected = np.mean([len(p & q) / min(ka, kb) for p, q in pairs])
        assert found.smaller_chance == pytest.approx(expected)


def test_chance_within_tensors_against_permutations():
    # Would catch: agreement on which tensors to keep counted as agreement on parameters.
    rng = np.random.default_rng(0)
    sizes, rates = {"x": 300, "y": 200}, {"x": (0.9, 0.8), "y": (0.05, 0.1)}
    pair = [
        {n: torch.from_numpy(rng.random(s) < rates[n][t]) for n, s in sizes.items()} for t in (0, 1)
    ]
    found = overlap(*pair)
    shuffled = [
        overlap({n: m[rng.permutation(len(m)).tolist()] for n, m in pair[0].items()}, pair[1])
        for _ in range(200)
    ]
    values = [s.jaccard for s in shuffled]
    error = np.std(values) / np.sqrt(len(values))
    assert found.chance_within == pytest.approx(np.mean(values), abs=4 * error)
    assert found.chance < found.chance_within - 0.2


def test_chance_of_large_masks():
    # Would catch: factorials that overflow, or a sum over millions of terms.
    n = 4_000_000
    half = torch.arange(n) < n // 2
    found = overlap({"x": half}, {"x": half.roll(n // 4)})
    assert found.chance == pytest.approx(1 / 3, abs=1e-6)
    assert found.jaccard == pytest.approx(1 / 3)


def test_nothing_kept_has_no_ratio():
    found = overlap({"x": _mask(0, 0)}, {"x": _mask(0, 0)})
    assert np.isnan([found.jaccard, found.smaller, found.chance, found.excess]).all()
    none = overlap({"x": _mask(0, 0)}, {"x": _mask(1, 0)})
    assert none.jaccard == 0
    assert np.isnan(none.smaller)


def test_unlike_masks_are_not_compared():
    with pytest.raises(IdentityError, match="'y'"):
        overlap({"x": _mask(1), "y": _mask(1)}, {"x": _mask(1)})
    with pytest.raises(IdentityError, match="'x'"):
        overlap({"x": _mask(1)}, {"x": _mask(1, 0)})
    with pytest.raises(ParameterError, match="boolean"):
        overlap({"x": torch.ones(2)}, {"x": torch.ones(2)})
    with pytest.raises(ParameterError, match="no masks"):
        overlap({}, {})


@pytest.mark.parametrize(("n", "a", "b"), [(4_000_000, 40, 70), (5000, 2400, 2600)])
def test_chance_against_whole_numbers(n, a, b):
    # Would catch: a distribution that loses digits where factorials are large.
    terms = range(max(0, a + b - n), min(a, b) + 1)
    pairs = [(comb(a, x) * comb(n - a, b - x), Fraction(x, a + b - x)) for x in terms]
    exact = sum(count * share for count, share in pairs) / comb(n, b)
    masks = [{"x": torch.arange(n) < kept} for kept in (a, b)]
    assert overlap(*masks).chance == pytest.approx(float(exact), rel=1e-13)
