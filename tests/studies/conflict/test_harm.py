"""Tests of single examples: type-I error, power, and why coordinates must not be permuted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fisherscope.studies.conflict.harm import by_example, by_pair, harms, tables
from studies.conflict import synthetic


def gradients(rng, n, size=300):
    """Exchangeable examples as gradients are: few large coordinates, the same in all of them."""
    scale = np.exp(1.5 * np.random.default_rng(99).standard_normal(size))
    return scale * rng.standard_normal((n, size))


def harm(a, b):
    return -a @ b.T


def within(a):
    found = harm(a, a)
    np.fill_diagonal(found, np.nan)
    return found


def trials(rng, count, p_values, n=20):
    return np.array([p_values(gradients(rng, n), gradients(rng, n)) for _ in range(count)])


def by_coordinates(a, b, rng, permutations=99):
    """The bug: shuffle the coordinates of b against those of A's mean gradient."""
    mean, found = a.mean(0), []
    for row in b:
        null = [-mean @ rng.permutation(row) for _ in range(permutations)]
        found.append((1 + sum(x >= -mean @ row for x in null)) / (1 + permutations))
    return np.array(found)


def uniform(p):
    """Kolmogorov-Smirnov distance from uniform."""
    return stats.kstest(p, "uniform").statistic


def test_p_values_of_exchangeable_examples_are_uniform():
    # Catches a one-sided tail for the other, the mean without its row's mean, a null of other
    # spread. All 20 columns of 300 tables: 6000 numbers, hardly dependent.
    rng = np.random.default_rng(0)
    p = trials(rng, 300, lambda a, b: by_example(harm(a, b), permutations=30, seed=0).p).ravel()
    assert uniform(p) < 0.021  # the 1% point of 6000 uniform numbers
    assert np.mean(p <= 0.01) == pytest.approx(0.01, abs=0.004)
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.01)


def test_p_values_of_exchangeable_pairs_are_uniform():
    # Catches a pair within A whose standard deviation it is part of (its z is too small, so
    # that pairs with B look large), and pairs of an example with itself in the null. Pairs of
    # different examples only: those of one table that share an example depend on each other.
    rng = np.random.default_rng(1)
    p = trials(rng, 200, lambda a, b: by_pair(harm(a, b), within(a)).p.diagonal()).ravel()
    assert uniform(p) < 0.026  # the 1% point of 4000 uniform numbers
    assert np.mean(p <= 0.01) == pytest.approx(0.01, abs=0.005)
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.0125)


def test_shuffled_coordinates_would_find_conflicts_among_exchangeable_examples():
    # Why the permutation is of examples: the same data with coordinates shuffled give many more
    # small p-values than there should be, on both sides.
    rng = np.random.default_rng(2)
    p = trials(rng, 60, lambda a, b: by_coordinates(a, b[:1], rng)[0])
    assert np.mean(p <= 0.05) + np.mean(p >= 0.95) > 0.2
    assert uniform(p) > 0.17


def test_a_large_gradient_alone_is_no_harm():
    # Catches harms that are permuted without being scaled: an example of B ten times as long, in
    # no direction, is extreme among permuted tables far too often.
    rng = np.random.default_rng(3)
    found, plain = [], []
    for _ in range(200):
        a, b = gradients(rng, 20), gradients(rng, 20)
        b[0] *= 10
        table = harm(a, b)
        found.append(by_example(table, permutations=20, seed=0).p[0])
        null = rng.permuted(np.broadcast_to(table, (40, 20, 20)), axis=2).mean(1).ravel()
        plain.append(np.mean(null >= table[:, 0].mean()))
    assert np.mean(np.array(found) <= 0.05) < 0.09
    assert np.mean(np.array(plain) <= 0.05) > 0.2


def test_a_planted_conflict_is_found():
    # Catches a test without power, ids in another order, and harm with its sign turned.
    rng = np.random.default_rng(4)
    direction = gradients(rng, 1)[0]
    a, b = gradients(rng, 30) + 0.5 * direction, gradients(rng, 40)
    b[7] -= 3 * direction
    found = tables(
        synthetic.grams({"a": a, "b": b}), permutations=200, level=0.05, most_pairs=10, seed=0
    )
    examples, pairs, outcomes = (frame[frame["on"] == "a"] for frame in found)
    first = examples.iloc[0]
    assert first["example"] == "b-7" and first["q"] < 0.01 and first["harm"] > 0
    assert set(pairs["example_by"][:5]) == {"b-7"}
    row = outcomes.set_index("level").loc["example"]
    assert row["outcome"] == "found" and row["n_tests"] == 40


def test_what_is_found_holds_on_other_examples():
    # Both tasks alike, with a mean gradient: examples differ in how far they go along it, so
    # some are found although tasks are exchangeable. That is no false alarm, which this shows:
    # to new examples of A they are more harmful than the average, too. Catches findings that
    # are noise of the sample of A.
    rng = np.random.default_rng(10)
    gaps = []
    for _ in range(60):
        mean = 0.5 * gradients(rng, 1)[0]
        a, b, new = (gradients(rng, n) + mean for n in (30, 30, 200))
        found = by_example(harm(a, b), permutations=50, seed=0).q <= 0.05
        later = harm(new, b).mean(0)
        gaps += list((later[found] - later.mean()) / later.std())
    assert len(gaps) > 20
    assert np.mean(np.array(gaps) > 0) > 0.9


def test_false_discoveries_are_controlled():
    # Catches p-values reported as q-values: of 40 true nulls, two would be found each time.
    rng = np.random.default_rng(5)
    any_found = trials(
        rng, 60, lambda a, b: by_example(harm(a, b), permutations=100, seed=0).q.min() <= 0.1
    )
    assert np.mean(any_found) < 0.25
    p = np.array([0.001, 0.01, 0.02, 0.5])
    test = by_example(harm(gradients(rng, 20), gradients(rng, 4)), permutations=50, seed=0)
    ranked = np.sort(test.p)
    expected = np.minimum.accumulate((ranked * 4 / np.arange(1, 5))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(test.q), np.minimum(expected, 1))
    assert len(p) == 4


def test_less_helpful_is_not_harmful():
    # Catches examples that help A, only less than the others, among those found.
    rng = np.random.default_rng(6)
    direction = gradients(rng, 1)[0]
    a = gradients(rng, 30) + 2 * direction
    b = gradients(rng, 30) + 10 * direction
    b[3] -= 7 * direction
    grams = synthetic.grams({"a": a, "b": b})
    assert (harms(grams, "plain", "a", "b") < 0).mean() > 0.99
    examples, _, outcomes = tables(grams, permutations=100, level=0.05, most_pairs=5, seed=0)
    assert examples[examples["on"] == "a"].iloc[0]["q"] < 0.05
    row = outcomes[(outcomes["on"] == "a") & (outcomes["level"] == "example")].iloc[0]
    assert row["n_found"] == 0 and row["outcome"] == "none_significant"


def test_harms_are_per_token_of_both():
    rng = np.random.default_rng(7)
    a, b = gradients(rng, 5), gradients(rng, 6)
    tokens = np.arange(1.0, 12)
    found = harms(synthetic.grams({"a": a, "b": b}, tokens=tokens), "plain", "a", "b")
    np.testing.assert_allclose(found, -(a / tokens[:5, None]) @ (b / tokens[5:, None]).T)


def test_the_least_p_is_what_the_permutations_allow():
    rng = np.random.default_rng(8)
    a, b = gradients(rng, 6), gradients(rng, 7)
    test = by_example(harm(a, b), permutations=10, seed=0)
    assert test.least == pytest.approx(1 / 71) and test.p.min() >= test.least
    assert by_pair(harm(a, b), within(a)).least == pytest.approx(1 / 31)


def test_constant_harms_are_no_evidence():
    # Catches a division by zero that ends as p of 0.
    test = by_example(np.ones((6, 6)), permutations=10, seed=0)
    assert (test.p == 1).all()


def test_too_few_examples_is_an_outcome():
    rng = np.random.default_rng(9)
    found = tables(
        synthetic.grams({"a": gradients(rng, 4), "b": gradients(rng, 9)}),
        permutations=10, level=0.05, most_pairs=5, seed=0,
    )  # fmt: skip
    assert isinstance(found[0], pd.DataFrame) and found[0].empty and found[1].empty
    assert set(found[2]["outcome"]) == {"too_few_examples"}
