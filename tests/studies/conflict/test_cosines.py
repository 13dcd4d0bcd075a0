"""Cosines of mean gradients: values, coverage of intervals, outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from fisherscope.studies.conflict.cosines import cosines
from studies.conflict import synthetic


def drawn(rng, n=40, size=200, cosine=0.5, noise=1.0):
    """Two tasks whose expected gradients have length 1 and this cosine."""
    a = np.zeros(size)
    b = np.zeros(size)
    a[0], b[0], b[1] = 1, cosine, np.sqrt(1 - cosine**2)
    scale = noise / np.sqrt(size) * np.sqrt(n)
    return {
        "a": a + scale * rng.standard_normal((n, size)),
        "b": b + scale * rng.standard_normal((n, size)),
    }


def whole(frame):
    return frame[frame["scope"] == "all"].iloc[0]


def test_without_noise_it_is_the_cosine_layer_by_layer():
    # Catches scopes out of order, a missing root, and norms of the other task.
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 6))
    tasks = {"a": np.tile(u, (6, 1)), "b": np.tile(2 * v, (7, 1))}
    frame, norms = cosines(synthetic.grams(tasks, layers=2), resamples=20, seed=0)
    for scope, part in (("0", slice(0, 3)), ("1", slice(3, 6)), ("all", slice(0, 6))):
        row = frame[frame["scope"] == scope].iloc[0]
        expected = u[part] @ v[part] / np.linalg.norm(u[part]) / np.linalg.norm(v[part])
        for column in ("cosine", "low", "high"):
            assert row[column] == pytest.approx(expected)
        assert row["inner"] == pytest.approx(2 * u[part] @ v[part])
    assert whole(norms)["squared_norm"] == pytest.approx(u @ u)


def test_products_are_per_token_and_cosines_don_t_depend_on_it():
    rng = np.random.default_rng(1)
    tasks = drawn(rng)
    plain = whole(cosines(synthetic.grams(tasks), resamples=10, seed=0)[0])
    tokens = np.full(80, 3.0)
    longer = {task: 3 * g for task, g in tasks.items()}
    scaled = whole(cosines(synthetic.grams(longer, tokens=tokens), resamples=10, seed=0)[0])
    for column in ("cosine", "low", "high", "inner", "inner_low"):
        assert scaled[column] == pytest.approx(plain[column])


def test_intervals_cover_the_true_cosine_and_are_not_pulled_to_zero():
    # Catches the norm of the mean for the unbiased one: with as much noise as signal (as here)
    # the cosine of the means is half of the truth, and no interval would hold the truth.
    rng = np.random.default_rng(2)
    covered, values, plain = [], [], []
    for trial in range(60):
        tasks = drawn(rng)
        row = whole(cosines(synthetic.grams(tasks), resamples=200, seed=trial)[0])
        covered.append(row["low"] <= 0.5 <= row["high"])
        values.append(row["cosine"])
        means = [g.mean(0) for g in tasks.values()]
        plain.append(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    assert np.mean(covered) >= 0.88
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)
    assert np.mean(plain) < 0.35  # the bug that the unbiased norms are for


def test_a_resample_never_pairs_an_example_with_its_copy():
    # Catches counts squared with the diagonal left in: resampled norms would lie above the data's.
    rng = np.random.default_rng(3)
    _, norms = cosines(synthetic.grams(drawn(rng, noise=2.0)), resamples=400, seed=0)
    row = whole(norms)
    middle = (row["low"] + row["high"]) / 2
    assert abs(middle - row["squared_norm"]) < 0.3 * (row["high"] - row["low"])
    assert row["biased"] > row["squared_norm"] + 2


def test_gradients_of_pure_noise_have_no_direction():
    # Catches a cosine of 1 or a division by a negative norm where nothing is resolved.
    rng = np.random.default_rng(4)
    tasks = {task: rng.standard_normal((20, 300)) for task in "ab"}
    frame, norms = cosines(synthetic.grams(tasks), resamples=200, seed=0)
    row = whole(frame)
    assert row["outcome"] == "not_resolved" and (row["low"], row["high"]) == (-1, 1)
    assert set(norms["outcome"]) == {"not_resolved"}


@pytest.mark.parametrize(
    ("cosine", "outcome"), [(-0.8, "conflict"), (0.8, "aligned"), (0.0, "not_resolved")]
)
def test_outcomes(cosine, outcome):
    # Catches a sign turned round.
    rng = np.random.default_rng(5)
    tasks = drawn(rng, cosine=cosine, noise=0.5)
    assert whole(cosines(synthetic.grams(tasks), resamples=200, seed=0)[0])["outcome"] == outcome


def test_the_same_data_in_two_tasks_is_no_evidence_of_likeness():
    # Catches products of an example with itself: two tasks of pure noise that share all of
    # their examples would be aligned.
    rng = np.random.default_rng(6)
    g = rng.standard_normal((20, 300))
    same = [(i, 20 + i) for i in range(20)]
    tasks = {"a": g, "b": g.copy()}
    shared = whole(cosines(synthetic.grams(tasks, same=same), resamples=200, seed=0)[0])
    assert shared["inner_low"] < 0 < shared["inner_high"]
    assert whole(cosines(synthetic.grams(tasks), resamples=200, seed=0)[0])["inner_low"] > 0


def test_what_a_sketch_adds_widens_the_interval():
    # Catches a sketch's noise left out: it is the same in every resample, so the bootstrap
    # alone can't know of it.
    rng = np.random.default_rng(7)
    tasks = drawn(rng, noise=0.2)
    rows = [
        whole(cosines(synthetic.grams(tasks, variance=v), resamples=500, seed=0)[0])
        for v in (0.0, 0.04)
    ]
    assert rows[1]["sketch_sd"] == pytest.approx(0.2)
    assert rows[1]["inner_high"] - rows[1]["inner_low"] == pytest.approx(2 * 1.96 * 0.2, rel=0.15)
    assert rows[0]["inner_high"] - rows[0]["inner_low"] < 0.3


def test_too_few_examples():
    rng = np.random.default_rng(8)
    tasks = drawn(rng)
    tasks["b"] = tasks["b"][:4]
    row = whole(cosines(synthetic.grams(tasks), resamples=10, seed=0)[0])
    assert row["outcome"] == "too_few_examples" and np.isnan(row["low"])
    assert np.isfinite(row["cosine"])
