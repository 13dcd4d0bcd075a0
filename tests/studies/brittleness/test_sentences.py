"""The first sentence of a study says which model is the more brittle, and whether that is sure."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fisherscope.studies.brittleness.ratios import compare, no_ratio
from fisherscope.studies.brittleness.result import Brittleness


def study(row, **more):
    place = {"model": "instruct", "reference": "base", "criterion": "progress", "task": "all"}
    counts = {"at": 0.5, "progress": 0.5, "reference_progress": 0.5, "n_seeds": 5, "n_diverged": 0}
    empty = pd.DataFrame()
    given = {
        "outcome": "ok", "reference": "base", "goal": 0.5, "stuck": (),
        "ratios": pd.DataFrame([{**place, **counts, **row}]), "curves": empty, "collapse": empty,
        "geometry": empty, "rates": empty, "runs": empty, "training": empty, **more,
    }  # fmt: skip
    return Brittleness(**given)


def draws(value, spread=0.01, seed=0):
    found = value + spread * np.random.default_rng(seed).normal(size=1001)
    found[0] = value
    return found


@pytest.mark.parametrize(
    ("reference", "other", "first", "last"),
    [
        (draws(0.1), draws(0.3, seed=1), "instruct is more brittle than base", "is resolved."),
        (draws(0.3), draws(0.1, seed=1), "instruct is less brittle than base", "is resolved."),
        (draws(0.3), draws(0.3, seed=1), "instruct and base are not told apart", "not resolved."),
        (draws(0.3), draws(-0.1, seed=1), "instruct is less brittle than base", "is resolved."),
        (draws(-0.1), draws(0.3, seed=1), "instruct loses more than base", "from zero."),
        (draws(0.0), draws(0.0, seed=1), "instruct and base are not told apart", "from zero."),
    ],
)
def test_the_sentence_follows_the_intervals(reference, other, first, last):
    # Catches a winner where the interval includes 1, and a ratio of gains in a sentence.
    row = compare(reference, other)
    found = study(row).findings()[0]
    assert found.startswith(first) and found.endswith(last)
    assert ("ratio " in found and f"{row['ratio']:.3g}" in found) == (not math.isnan(row["ratio"]))
    apart = not row["difference_low"] < 0 < row["difference_high"]
    assert ("not resolved" in found) == (not apart)


def test_rates_far_apart_are_a_warning():
    # Catches a ratio that is told without the rates that it rests on.
    table = pd.DataFrame({"model": ["base", "instruct"], "rate": [3e-3, 3e-4], "chosen": True})
    near = table.assign(rate=[3e-4, 2e-4])
    row = compare(draws(0.3), draws(0.1, seed=1))
    assert "differ by a factor of 10" in " ".join(study(row, rates=table).findings())
    said = " ".join(study(row, rates=near).findings())
    assert "Matched rates: base 0.0003, instruct 0.0002." in said and "factor" not in said


def test_what_kept_a_ratio_from_being_is_said():
    row = {**no_ratio("diverged"), "n_seeds": 1, "n_diverged": 4}
    assert "1 of 5 seeds came through" in study(row).findings()[0]
    stuck = study(row, outcome="no_progress", stuck=("instruct",)).findings()
    assert stuck[0].startswith("There is no ratio") and "for instruct" in stuck[0]
