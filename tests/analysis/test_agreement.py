"""The five metrics, and what chance gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fisherscope.analysis.agreement import Vector, agreement, chance

RNG = np.random.default_rng(0)
FEW = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 8.0]), min_size=5, max_size=5)


# Would catch: one metric under the name of another, ties ranked by place, zeros in a top set.
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.7, 2.0, 9.0])] * 2), min_size=3))
def test_metrics_are_scipys(pairs):
    a, b = np.array(pairs, dtype=np.float32).T
    found = agreement(Vector(a, 0.4), Vector(b, 0.4))
    both = {"cosine": a @ b / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else np.nan}
    constant = len(set(a)) == 1 or len(set(b)) == 1
    both["pearson"] = np.nan if constant else stats.pearsonr(a, b).statistic
    both["spearman"] = np.nan if constant else stats.spearmanr(a, b).statistic
    k = max(1, round(0.4 * len(a)))
    tops = [{i for i in np.argsort(-v, kind="stable")[:k] if v[i] > 0} for v in (a, b)]
    union = tops[0] | tops[1]
    both["jaccard"] = len(tops[0] & tops[1]) / len(union) if union else np.nan
    for metric, expected in both.items():
        assert found[metric] == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), metric


# Would catch: shuffling over the whole vector instead of within tensors, means that are not those
# of the parts, ranks or top sets of the parts taken instead of the whole's.
@given(a=FEW, b=FEW)
def test_chance_is_the_mean_over_all_permutations(a, b):
    places = [slice(0, 3), slice(3, 5)]
    first = Vector(np.array(a, dtype=np.float32), 0.4)
    shuffled = [
        agreement(first, Vector(np.array([*head, *tail], dtype=np.float32), 0.4))
        for head in itertools.permutations(b[:3])
        for tail in itertools.permutations(b[3:])
    ]
    second = Vector(np.array(b, dtype=np.float32), 0.4)
    found = chance(first, second, places)
    for metric in ("cosine", "pearson", "spearman", "bhattacharyya"):
        # A spread of nothing but rounding has no correlation to speak of.
        if metric == "pearson" and min(first.spread, second.spread) < 1e-6:
            continue
        mean = np.mean([s[metric] for s in shuffled])
        assert found[metric] == pytest.approx(mean, rel=1e-6, abs=1e-9, nan_ok=True), metric


def test_chance_of_top_sets_is_that_of_the_mean_intersection():
    # The index is convex in the intersection, so this is a little below its mean.
    a, b = (Vector(RNG.random(1000).astype(np.float32), 0.1) for _ in range(2))
    expected = 100 * 100 / 1000
    assert chance(a, b, [slice(0, 1000)])["jaccard"] == pytest.approx(expected / (200 - expected))
    # Top sets that fill one tensor meet there by necessity.
    big = np.concatenate([np.full(100, 9.0), np.zeros(900)]) + RNG.random(1000)
    c, d = (Vector(big.astype(np.float32), 0.1) for _ in range(2))
    assert chance(c, d, [slice(0, 100), slice(100, 1000)])["jaccard"] == 1.0
