from __future__ import annotations

import numpy as np
import pytest

from fisherscope.studies.calibration import Point, calibrate

SCALES = (0.1, 0.2, 0.5, 1.0)


def points(truth=1.0, noise=0.0, n=40, tasks=("a", "b"), stored=2.0):
    rng = np.random.default_rng(0)
    found = []
    for task in tasks:
        g, c = rng.normal(-0.3, 0.2, n), rng.uniform(0.5, 1.5, n)
        for t in SCALES:
            first, second = t * g, t**2 * c
            measured = first + truth * second + noise * t * rng.normal(size=n)
            tokens = np.full(n, 2.0)
            method = {"stored": stored * second.mean() / 2}
            found.append(Point(task, t, tokens, first, second, measured, method))
    return found


def test_a_perfect_prediction():
    # Catches a slope of predicted on measured, and curvature compared with the whole change.
    full = calibrate(points()).set_index("method").loc["full"]
    assert full["spearman"] == pytest.approx(1) and full["slope"] == pytest.approx(1)
    assert full["log_error"] == pytest.approx(0, abs=1e-12) and full["ratio"] == pytest.approx(1)
    assert (full["n"], full["n_curved"]) == (8, 8)


def test_curvature_wrong_by_a_factor():
    # Catches the logarithm of something else than predicted over measured curvature.
    frame = calibrate(points(truth=0.5)).set_index("method")
    assert frame.loc["full", "log_error"] == pytest.approx(np.log(2))
    assert frame.loc["stored", "log_error"] == pytest.approx(np.log(4))
    assert frame.loc["stored", "ratio"] == pytest.approx(4)


def test_every_step_size_counts_alike_for_the_slope():
    # Catches a slope that the largest steps decide: only the smallest are wrong here.
    wrong = [
        Point(p.task, p.scale, p.tokens, p.first, p.second, 2 * p.measured, p.stored)
        if p.scale < 0.15
        else p
        for p in points()
    ]
    slope = calibrate(wrong).set_index("method").loc["full", "slope"]
    assert slope == pytest.approx(calibrate_slope(wrong)) and slope > 1.05


def test_points_without_measured_curvature_are_left_out_and_counted():
    # Catches a logarithm of a negative number that turns the mean into NaN.
    found = points()
    p = found[0]
    found[0] = Point(p.task, p.scale, p.tokens, p.first, p.second, p.first - 1.0, p.stored)
    full = calibrate(found).set_index("method").loc["full"]
    assert full["n_curved"] == 7 and full["log_error"] == pytest.approx(0, abs=1e-12)


def test_intervals_are_those_of_resampled_examples():
    # Catches resamples drawn for each point on its own, which would be far too narrow.
    wide = calibrate(points(noise=0.5)).set_index("method").loc["full"]
    narrow = calibrate(points(noise=0.05)).set_index("method").loc["full"]
    assert wide["slope_low"] < wide["slope"] < wide["slope_high"]
    spans = [r["slope_high"] - r["slope_low"] for r in (wide, narrow)]
    assert spans[0] > 5 * spans[1] > 0
    shared = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        some = points()
        flip = {task: rng.normal(0, 0.3, 40) for task in ("a", "b")}
        shared.append(
            calibrate_slope([
                Point(p.task, p.scale, p.tokens, p.first, p.second,
                      p.measured + p.scale * flip[p.task], p.stored)
                for p in some
            ])
        )  # fmt: skip
    rng = np.random.default_rng(1)
    flip = {task: rng.normal(0, 0.3, 40) for task in ("a", "b")}
    one = [
        Point(p.task, p.scale, p.tokens, p.first, p.second,
              p.measured + p.scale * flip[p.task], p.stored)
        for p in points()
    ]  # fmt: skip
    row = calibrate(one).set_index("method").loc["full"]
    assert row["slope_high"] - row["slope_low"] == pytest.approx(3.92 * np.std(shared), rel=0.4)


def calibrate_slope(found):
    first, second, measured = (
        np.array([getattr(p, k).sum() / p.tokens.sum() / p.scale for p in found])
        for k in ("first", "second", "measured")
    )
    predicted = first + second
    return (predicted * measured).sum() / (predicted**2).sum()


def test_no_points():
    assert calibrate([]).empty
