from __future__ import annotations

import numpy as np
import pytest

from fisherscope.studies.brittleness.paths import (
    ENDS,
    crossing,
    interval,
    read,
    resampled,
    seed_weights,
)
from oracles.courses import noisy, run


def test_the_estimate_is_the_plain_mean():
    # Catches tokens that are not counted, and examples averaged before they are weighed.
    made = run([[4.0, 2.0], [2.0, 2.0]], {"old": [1.0, 2.0]})
    made.tokens["new"][:] = [3, 1]
    other = run([[4.0, 2.0], [0.0, 2.0]], {"old": [1.0, 4.0]})
    paths = resampled([made, other], 0)
    assert paths.losses["new"][0].tolist() == [6 / 4, 3 / 4]
    assert paths.damage("old")[0].tolist() == [0, 2]
    assert paths.progress[0].tolist() == [0, 3 / 4]


@pytest.mark.parametrize("count", [3, 5, 8])
def test_few_seeds_have_the_width_of_student(count):
    # Catches a plain bootstrap of seeds, which at five seeds covers 84% and not 95%.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        values = rng.normal(size=count)
        _, low, high = interval(seed_weights(count, rng) @ values)
        hits += low <= 0 <= high
    assert hits / 600 == pytest.approx(0.95, abs=0.03)


def test_weights_of_seeds_are_shares():
    weights = seed_weights(4, np.random.default_rng(0))
    assert weights[0].tolist() == [0.25] * 4
    assert np.allclose(weights.sum(1), 1)


def test_both_seeds_and_examples_spread():
    # Catches an interval over seeds alone, or over examples alone.
    rng = np.random.default_rng(0)
    widths = []
    for seed_noise, example_noise in ((None, 0.0), (np.zeros(6), 1.0), (None, 1.0)):
        runs = noisy(6, 40, rng, seed_noise=seed_noise, example_noise=example_noise)
        low, high = np.quantile(resampled(runs, 0).damage("old")[1:, -1], ENDS)
        widths.append(high - low)
    assert widths[0] > 0.5 and widths[1] > 0.3 and widths[2] > widths[1]


def test_a_level_is_met_between_points_and_for_the_first_time():
    # Catches the nearest point, the last crossing, and a start that is there already.
    rising = np.array([[0.0, 1.0, 0.5, 2.0], [0.0, 0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0]])
    where = crossing(rising, np.array([0.75, 0.4, 0.5]))
    assert where.tolist() == [0.75, np.inf, 0.0]
    curves = np.array([[0.0, 4.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert read(curves, np.array([0.75, 3.0])).tolist() == [3.0, 3.0]
