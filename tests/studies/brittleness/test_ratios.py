from __future__ import annotations

import math

import numpy as np
import pytest

from fisherscope.studies.brittleness.paths import resampled
from fisherscope.studies.brittleness.ratios import compare, ratios
from oracles.courses import noisy, run


def paths(new, old, seeds=4):
    return resampled([run(new, {"old": old}, seed=s, examples=3) for s in range(seeds)], 0)


def test_ratio_at_equal_progress_is_read_between_points():
    # By hand: both reach 1.0; the reference loses 0.5 there, the other 2 + 0.5·(4 − 2) = 3.
    # Catches damages at the ends of the runs, and the nearest measurement.
    reference = paths([3.0, 2.5, 2.0], [1.0, 1.2, 1.5])
    other = paths([5.0, 4.5, 3.5], [1.0, 3.0, 5.0])
    rows = ratios(reference, other, ["old"], "progress")
    assert [row["task"] for row in rows] == ["all", "old"]
    assert rows[0]["ratio"] == pytest.approx(6) and rows[0]["at"] == pytest.approx(1)
    assert rows[0]["outcome"] == "more_brittle"
    back = ratios(other, reference, ["old"], "progress")[0]
    assert back["ratio"] == pytest.approx(1 / 6) and back["outcome"] == "less_brittle"


def test_an_equal_loss_is_another_place_than_equal_progress():
    # The lowest loss that both reach is 2.0: the other needs only 0.2 of progress for it.
    reference = paths([3.0, 2.0], [1.0, 2.0])
    other = paths([2.2, 2.0, 1.0], [1.0, 1.5, 9.0])
    row = ratios(reference, other, ["old"], "level")[0]
    assert row["at"] == pytest.approx(2) and row["ratio"] == pytest.approx(0.5)
    assert ratios(reference, other, ["old"], "progress")[0]["ratio"] > 5
    assert ratios(reference, other, ["old"], "same_rate")[0]["ratio"] == pytest.approx(8)


def test_identical_models_have_exactly_one():
    # Catches draws that differ between the two models: the interval would have a width.
    runs = noisy(5, 12, np.random.default_rng(0), seed_noise=np.full(5, 0.1), example_noise=0.3)
    for criterion in ("progress", "level", "same_rate"):
        row = ratios(resampled(runs, 0), resampled(runs, 0), ["old"], criterion)[0]
        assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (1, 1, 1)
        assert row["outcome"] == "not_resolved"
        assert row["difference_low"] == row["difference_high"] == 0


def test_pairing_narrows_the_interval():
    # What the seeds have in common cancels. Catches resamples of its own for each model, which
    # with the same losses make the interval several times as wide.
    rng = np.random.default_rng(0)
    shared = 0.2 * rng.normal(size=6)
    reference = resampled(noisy(6, 8, rng, seed_noise=shared), 0)
    runs = noisy(6, 8, rng, slope=1.3, seed_noise=1.3 * shared)
    paired, alone = (
        ratios(reference, resampled(runs, seed), ["old"], "progress")[0] for seed in (0, 1)
    )
    assert paired["ratio"] == alone["ratio"] == pytest.approx(1.3)
    assert paired["ratio_high"] - paired["ratio_low"] < 1e-6
    assert alone["ratio_high"] - alone["ratio_low"] > 0.2


def test_there_is_no_ratio_where_damage_is_not_resolved():
    # Catches a ratio of two gains, which would be a positive number, and one over almost zero.
    rng = np.random.default_rng(0)
    gain = np.full(1001, -0.5) + 0.01 * rng.normal(size=1001)
    noise, harm = 0.1 * rng.normal(size=1001), 1 + 0.1 * rng.normal(size=1001)
    noise[0] = 0.01
    for reference, other in ((gain, gain), (noise, harm), (gain, harm)):
        row = compare(reference, other)
        assert row["outcome"] == "no_damage" and math.isnan(row["ratio"])
    assert compare(gain, harm)["difference_low"] > 1


def test_what_a_model_hardly_loses_or_gains_has_a_ratio_to_what_another_loses():
    # Catches a ratio that is only there where both damages are resolved, so that the most robust
    # model would have none.
    rng = np.random.default_rng(0)
    noise, harm = 0.1 * rng.normal(size=1001), 1 + 0.1 * rng.normal(size=1001)
    row = compare(harm, noise)
    assert row["outcome"] == "less_brittle" and row["ratio_low"] < 0 < row["ratio_high"] < 0.5
    assert compare(harm, noise - 0.5)["ratio"] == pytest.approx((noise[0] - 0.5) / harm[0])


def test_a_resample_without_damage_counts_against_the_ratio():
    # 20 of 1000 resamples have no damage in the reference, 10 have a low ratio; the lower end is
    # the 25th. Catches negative ratios, which would push the low ones up to it, and resamples in
    # which neither model has damage taken for large ratios, or left out.
    reference, other = np.full(1001, 1.0), np.full(1001, 2.0)
    reference[1:21], other[21:31], other[31:41] = -0.5, 0.5, 5.0
    row = compare(reference, other)
    assert (row["ratio_low"], row["ratio_high"]) == (2, 5)
    other[1:21] = -0.5
    row = compare(reference, other)
    assert (row["ratio_low"], row["ratio_high"]) == (0.5, 5)


def test_runs_that_learn_nothing_are_not_compared():
    flat = paths([3.0, 3.1], [1.0, 2.0])
    row = ratios(flat, flat, ["old"], "progress")[0]
    assert row["outcome"] == "no_progress"


def test_all_tasks_count_alike():
    # Catches a sum over examples or tokens, in which a long task outweighs a short one.
    made = [
        run([3.0, 2.0], {"a": [1.0, 2.0], "b": np.array([[1.0] * 9, [4.0] * 9])}, seed=s)
        for s in range(3)
    ]
    row = ratios(resampled(made, 0), resampled(made, 0), ["a", "b"], "progress")[0]
    assert row["damage"] == pytest.approx(2)
