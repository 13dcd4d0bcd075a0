"""Measures of calibration in closed cases, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from fisherscope.analysis.uncertainty import calibration
from fisherscope.analysis.uncertainty.calibration import (
    expected_calibration_error,
    fit_temperature,
    of_classes,
    of_values,
    scaled,
    table,
)
from fisherscope.analysis.uncertainty.rows import Rows
from fisherscope.errors import ParameterError


def made(logits: np.ndarray, labels: np.ndarray, k: int | None = None, per: int = 1) -> Rows:
    """Rows of full logits; with ``k`` the most likely k classes and a pool."""
    n, c = logits.shape
    pooled = k is not None and k < c
    classes = np.argsort(-logits, 1)[:, : k or c] if pooled else np.tile(np.arange(c), (n, 1))
    outputs = np.take_along_axis(logits, classes, 1)
    column = np.array([
        list(line).index(y) if y in line else classes.shape[1]
        for line, y in zip(classes, labels, strict=True)
    ])
    inside, squares = np.zeros(n), np.zeros(n)
    if pooled:
        rest = logits.copy()
        np.put_along_axis(rest, classes, -np.inf, 1)
        outputs = np.column_stack([outputs, logsumexp(rest, 1)])
        shares = log_softmax(rest, 1)
        outside = column == k
        inside = np.where(outside, shares[np.arange(n), labels], 0.0)
        squares = np.exp(2 * shares).sum(1)
    ids = tuple(f"row-{i}" for i in range(-(-n // per)))
    return Rows(
        ids, np.arange(n) // per, np.zeros(n, int), classes, outputs, pooled, labels, column,
        inside, squares, True,
    )  # fmt: skip


def drawn(n: int, c: int = 4, sharp: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``sharp`` times too large for the labels."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((n, c))
    p = softmax(logits, -1)
    labels = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=c - 1)
    return logits * sharp, labels


# Would catch: bins that don't weigh by their rows, signed gaps that cancel between bins, gaps of
# single rows (which never cancel), an edge in the wrong bin.
def test_calibration_error_in_closed_cases():
    confidence = np.array([0.8] * 10)
    correct = np.array([1] * 8 + [0] * 2)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(confidence, np.ones(10)) == pytest.approx(0.2)
    # One bin too sure by 0.3 on 30 rows, one not sure enough by 0.1 on 10.
    confidence = np.array([0.9] * 30 + [0.5] * 10)
    correct = np.array([1] * 18 + [0] * 12 + [1] * 6 + [0] * 4)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.25)
    edge = np.array([1.0, 1.0, 0.0])
    assert expected_calibration_error(edge, np.array([1, 1, 0])) == 0
    # 0.60 and 0.65 lie left and right of an edge at 9/15; 0.6 belongs to the left bin.
    two = np.array([0.6, 0.65])
    assert expected_calibration_error(two, np.array([1, 0])) == pytest.approx((0.4 + 0.65) / 2)


# Would catch: equal widths under the other name; rows of the same confidence are cut apart by
# order only.
def test_equal_masses():
    confidence = np.concatenate([np.full(5, 0.91), np.full(5, 0.92)])
    correct = np.array([1] * 5 + [0] * 5)
    one = expected_calibration_error(confidence, correct, bins=2)
    assert one == pytest.approx(abs(0.5 - 0.915))
    two = expected_calibration_error(confidence, correct, equal_mass=True, bins=2)
    assert two == pytest.approx((0.09 + 0.92) / 2)
    with pytest.raises(ParameterError, match="all in 0 to 1"):
        expected_calibration_error(np.array([1.2]), np.array([1]))


# Would catch: a Brier score or an NLL that leaves the pooled classes out.
def test_pooled_classes_change_no_measure_of_the_model_itself():
    logits, labels = drawn(40, c=6)
    whole, pool = made(logits, labels), made(logits, labels, k=2)
    assert pool.pooled and (pool.column == 2).sum() > 3
    mine = of_classes(pool, softmax(pool.outputs, -1))
    full = of_classes(whole, softmax(logits, -1))
    p = softmax(logits, -1)
    hit = np.eye(6)[labels]
    np.testing.assert_allclose(full.means["brier"], np.square(p - hit).sum(1), rtol=1e-12)
    np.testing.assert_allclose(full.means["nll"], -np.log(p[np.arange(40), labels]), rtol=1e-12)
    for measure in ("nll", "brier", "accuracy"):
        np.testing.assert_allclose(mine.means[measure], full.means[measure], rtol=1e-10)


# Would catch: the noise counted twice or not at all, |Δ| for Δ², a one-sided quantile.
def test_regression_measures():
    rng = np.random.default_rng(0)
    n = 4000
    cov = np.array([[2.0, 0.8], [0.8, 1.0]])
    y = rng.multivariate_normal([0, 0], cov, n)
    ids = tuple(map(str, range(n)))
    zero = np.zeros(n)
    rows = Rows(ids, np.arange(n), zero.astype(int), np.zeros((n, 2), int), np.zeros((n, 2)),
                False, y, zero.astype(int), zero, zero, True)  # fmt: skip
    found = of_values(rows, np.zeros((n, 2)), np.broadcast_to(cov, (n, 2, 2)))
    assert found.means["coverage_95"].mean() == pytest.approx(0.95, abs=0.014)
    exact = 1 + np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(cov))
    assert found.means["nll"].mean() == pytest.approx(exact, abs=0.06)
    assert found.means["squared_error"].mean() == pytest.approx(3.0, rel=0.06)


# Would catch: a temperature upside down, or a fit that stops at its start.
def test_temperature_scaling_finds_the_factor():
    logits, labels = drawn(4000, sharp=3.0)
    rows = made(logits, labels)
    assert fit_temperature(rows) == pytest.approx(3.0, rel=0.06)
    np.testing.assert_allclose(scaled(rows, 3.0), softmax(logits / 3, -1))


def compare(rows: Rows, factor: float, seed: int = 0):
    return table(
        rows,
        {
            "map": of_classes(rows, softmax(rows.outputs, -1)),
            "better": of_classes(rows, scaled(rows, factor)),
        },
        seed,
    )


# Would catch: changes that are not paired (as wide as both intervals together), and an outcome
# that does not say so when a change is one.
def test_changes_are_paired():
    logits, labels = drawn(300, sharp=3.0)
    found, outcome = compare(made(logits, labels), 3.0)
    assert outcome == "measured"
    lines = found.set_index(["predictor", "measure"])
    for measure in ("nll", "ece", "ece_equal_mass"):
        line = lines.loc["better", measure]
        assert line["change_high"] < 0
        assert line["change"] == pytest.approx(line["value"] - lines.loc["map", measure]["value"])
    width = lines["high"] - lines["low"]
    change = lines.loc["better", "nll"]
    assert change["change_high"] - change["change_low"] < 1.2 * width["map", "nll"]
    assert np.isnan(lines.loc["map", "nll"]["change"])


# Would catch: tokens resampled one by one although those of an example belong together.
def test_rows_of_an_example_are_resampled_together():
    logits, labels = drawn(60, sharp=2.0)
    again = made(np.repeat(logits, 10, 0), np.repeat(labels, 10), per=10)
    one = compare(made(logits, labels), 2.0)[0]
    ten = compare(again, 2.0)[0]
    np.testing.assert_allclose(ten["value"], one["value"], atol=1e-9)
    nll = one["measure"] == "nll"
    np.testing.assert_allclose(ten["high"][nll], one["high"][nll], rtol=1e-9)


# Would catch: silent NaN, or an interval from a handful of examples.
def test_too_few_examples_and_one_class_are_named():
    logits, labels = drawn(9)
    found, outcome = compare(made(logits, labels), 1.0)
    assert outcome == "too_few_examples"
    assert np.isfinite(found["value"]).all() and found["low"].isna().all()
    logits, _ = drawn(30)
    found, outcome = compare(made(logits, np.full(30, 2)), 1.0)
    assert outcome == "one_class" and np.isfinite(found["value"]).all()


# Percentiles of resampled calibration errors lie above the truth, because each resample adds
# noise that the absolute value turns into error; reflected they don't.
# Would catch: plain percentiles (they cover 10% of 60 such data sets, reflected ones 78%).
def test_intervals_of_the_calibration_error_cover_it(monkeypatch):
    monkeypatch.setattr(calibration, "RESAMPLES", 200)
    truth = np.mean([value(5000, seed) for seed in range(90, 94)])
    covered, plain = [], []
    for seed in range(40):
        logits, labels = drawn(60, sharp=1.5, seed=seed)
        found, _ = compare(made(logits, labels), 1.0, seed)
        line = found[(found["predictor"] == "map") & (found["measure"] == "ece")].iloc[0]
        covered.append(line["low"] <= truth <= line["high"])
        mirrored = 2 * line["value"] - line[["high", "low"]]
        plain.append(mirrored["high"] <= truth <= mirrored["low"])
    assert np.mean(covered) >= 0.65
    assert np.mean(plain) <= 0.4


def value(n: int, seed: int) -> float:
    logits, labels = drawn(n, sharp=1.5, seed=seed)
    p = softmax(logits, -1)
    return expected_calibration_error(p.max(1), p.argmax(1) == labels)
