"""Metrics of continual learning against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import fisherscope as fs
from fisherscope.studies.continual import continual_metrics

# Task 1 is best after task 2, so that forgetting is not minus backward transfer.
R = np.array([[0.80, 0.30, 0.10], [0.90, 0.70, 0.25], [0.60, 0.55, 0.95]])


def values(*args, **options) -> dict[str, float]:
    frame = continual_metrics(*args, **options).to_frame()
    return dict(zip(frame["metric"], frame["value"], strict=True))


# Catches: rows and columns exchanged; forgetting against the diagonal (Avalanche) instead of the
# best so far (Chaudhry); the last task counted among the old ones; forward transfer below the
# diagonal; a maximum over all rows, the last included.
def test_by_hand() -> None:
    found = values(R, untrained=[0.1, 0.12, 0.08], reference=[0.8, 0.85, 0.9])
    assert found["ACC"] == pytest.approx((0.60 + 0.55 + 0.95) / 3)
    assert found["BWT"] == pytest.approx(((0.60 - 0.80) + (0.55 - 0.70)) / 2)
    assert found["FWT"] == pytest.approx(((0.30 - 0.12) + (0.25 - 0.08)) / 2)
    assert found["forgetting"] == pytest.approx(((0.90 - 0.60) + (0.70 - 0.55)) / 2)
    assert found["learning"] == pytest.approx((0.80 + 0.70 + 0.95) / 3)
    assert found["intransigence"] == pytest.approx((0 + 0.15 - 0.05) / 3)


# Catches: forgetting clipped at zero: a task that goes on improving has a negative one.
def test_forgetting_can_be_negative() -> None:
    assert values([[0.5, 0.1], [0.8, 0.9]])["forgetting"] == pytest.approx(-0.3)


# Catches: a standard error over tasks instead of seeds, a normal quantile for three seeds.
def test_interval_over_seeds() -> None:
    runs = np.stack([R, R + 0.03, R - 0.06])
    row = continual_metrics(runs, level=0.9).to_frame().set_index("metric").loc["ACC"]
    each = [0.7, 0.73, 0.64]
    se = np.std(each, ddof=1) / math.sqrt(3)
    assert row["value"] == pytest.approx(np.mean(each)) and row["se"] == pytest.approx(se)
    half = stats.t.ppf(0.95, 2) * se
    assert row["low"] == pytest.approx(np.mean(each) - half)
    assert row["high"] == pytest.approx(np.mean(each) + half)


# Catches: an interval of width zero where there is none; a metric whose input was not given.
def test_one_seed_has_no_interval() -> None:
    found = continual_metrics(R)
    assert found.outcome == "one_seed"
    assert found.to_frame()[["se", "low", "high"]].isna().all(axis=None)
    assert set(found.metrics) == {"ACC", "BWT", "forgetting", "learning"}


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([[0.5]], {}, "one task only"),
        (np.zeros((2, 3)), {}, r"shape \(2, 3\)"),
        (np.zeros((0, 2, 2)), {}, r"shape \(0, 2, 2\)"),
        ([[0.5, math.nan], [0.5, 0.5]], {}, r"not finite at \(0, 0, 1\)"),
        (R, {"untrained": [0.1]}, r"untrained has shape \(1,\)"),
        (R, {"reference": [0.1, math.inf, 0]}, r"reference is not finite at \(1,\)"),
        (R, {"level": 1.0}, "level=1.0"),
    ],
)
def test_bad_input(arguments, options, said) -> None:
    with pytest.raises(fs.FisherscopeError, match=said):
        continual_metrics(arguments, **options)
