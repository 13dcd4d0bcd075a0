from __future__ import annotations

import math

import pytest

from fisherscope.studies.brittleness.rates import REFINEMENTS, TOLERANCE, search

GRID = (1e-3, 1e-4, 1e-2)


def falls(**ceilings):
    """Progress that grows with the rate up to a ceiling of the model, and the calls made."""
    calls = []

    def progress(model, rate):
        calls.append((model, rate))
        return ceilings[model] * rate / (rate + 3e-4)

    return progress, calls


def test_rates_reach_the_same_progress():
    # The goal is 0.8 of what the worse learner attains. Catches shares of each model's own.
    progress, calls = falls(a=1.0, b=3.0)
    found = search(["a", "b"], GRID, 0.8, progress)
    assert found.goal == pytest.approx(0.8 * progress("a", 1e-2))
    for model, rate in found.chosen.items():
        assert progress(model, rate) == pytest.approx(found.goal, rel=0.05)
    assert found.chosen["b"] < found.chosen["a"]
    assert len(set(calls)) == len(found.table) <= 2 * (len(GRID) + REFINEMENTS)
    assert found.table["chosen"].sum() == 2 and found.stuck == ()


def test_a_goal_below_the_grid_is_met():
    # Catches a search that can't go below the lowest rate of its grid.
    progress, _ = falls(a=0.1, b=30.0)
    found = search(["a", "b"], GRID, 0.8, progress)
    assert found.chosen["b"] < 1e-4
    assert progress("b", found.chosen["b"]) == pytest.approx(found.goal, rel=2 * TOLERANCE)


def test_equal_models_get_equal_rates():
    progress, _ = falls(a=1.0, b=1.0)
    found = search(["a", "b"], GRID, 0.5, progress)
    assert found.chosen["a"] == found.chosen["b"]


def test_a_rate_that_diverges_is_a_result():
    def progress(model, rate):
        return math.nan if rate > 5e-3 else rate

    found = search(["a", "b"], GRID, 1.0, progress)
    assert found.goal == 1e-3
    assert found.table["progress"].isna().sum() == 2


def test_a_model_that_learns_nothing_stops_the_search():
    progress, calls = falls(a=1.0, b=-1.0)
    found = search(["a", "b"], GRID, 0.8, progress)
    assert found.stuck == ("b",) and not found.chosen and math.isnan(found.goal)
    assert len(calls) == 6
