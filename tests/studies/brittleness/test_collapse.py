from __future__ import annotations

import math

import numpy as np
import pytest

from fisherscope.studies.brittleness.collapse import collapse
from fisherscope.studies.brittleness.paths import resampled
from oracles.courses import run

NEW = [3.0, 2.0, 1.0, 1.0]
STEPS = [0, 10, 20, 30]


def found(*olds, uninformed=5.0, share=0.5, broken=()):
    runs = [run(NEW, {"old": old}, seed=i, steps=STEPS, examples=2) for i, old in enumerate(olds)]
    paths = resampled(runs, 0)
    lost = [run(NEW[:2], {"old": [1.0, 9.0]}, steps=STEPS[:2], outcome="diverged") for _ in broken]
    return collapse(paths, [*runs, *lost], "old", uninformed, share)


def test_the_step_is_read_between_measurements():
    # Intact 1, uninformed 5: halfway is 3, reached between 2 (step 10) and 4 (step 20). Catches
    # the first measurement beyond it (20), and a way that is counted from zero.
    row = found([1.0, 2.0, 4.0, 4.5], [1.0, 2.0, 4.0, 4.5])
    assert row["step"] == pytest.approx(15) and row["outcome"] == "ok"
    assert row["low"] == row["high"] == pytest.approx(15)
    assert row["lost"] == pytest.approx(3.5 / 4) and row["collapsed"] == 2


def test_a_relapse_does_not_move_the_step():
    assert found([1.0, 4.0, 1.0, 4.0], [1.0, 4.0, 1.0, 4.0])["step"] == pytest.approx(20 / 3)


def test_never_is_said_and_not_given_the_last_step():
    row = found([1.0, 1.5, 2.0, 2.5], [1.0, 1.5, 2.0, 2.5])
    assert row["outcome"] == "not_reached" and math.isinf(row["step"])
    assert row["lost"] == pytest.approx(1.5 / 4) and row["collapsed"] == 0


def test_seeds_that_do_not_collapse_make_the_upper_end_open():
    # Catches censored resamples that are left out, so that the interval ends inside the run.
    row = found([1.0, 2.0, 4.0, 4.9], [1.0, 1.2, 1.4, 2.2], [1.0, 2.0, 4.0, 4.8])
    assert row["outcome"] == "ok" and math.isinf(row["high"]) and np.isfinite(row["low"])
    assert (row["collapsed"], row["runs"]) == (2, 3)


def test_a_task_that_is_not_known_can_not_be_lost():
    row = found([6.0, 7.0, 8.0, 9.0], [6.0, 7.0, 8.0, 9.0])
    assert row["outcome"] == "no_better_than_uninformed" and row["collapsed"] == 0


def test_a_run_that_diverged_has_collapsed():
    row = found([1.0, 1.1, 1.2, 1.3], [1.0, 1.1, 1.2, 1.3], broken=[1])
    assert (row["collapsed"], row["runs"]) == (1, 3)
    alone = collapse(None, [run(NEW, {"old": NEW}, outcome="diverged")], "old", 5.0, 0.5)
    assert alone["outcome"] == "diverged"
