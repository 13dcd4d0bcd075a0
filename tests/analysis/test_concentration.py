import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.builders import draw, fisher_of
from fisherscope.analysis import concentration


def _of(values, **options):
    return concentration(fisher_of({"w": np.asarray(values, float)[None]}, **options))


def test_a_uniform_fisher_is_a_straight_line():
    # Would catch: an ascending curve, a participation ratio upside down.
    found = _of(np.ones(1000))
    frame = found.to_frame()
    np.testing.assert_allclose(frame["mass"], frame["fraction"])
    assert found.participation == pytest.approx(1)
    assert found.top == pytest.approx({"0.001": 0.001, "0.01": 0.01, "0.1": 0.1})


def test_a_single_coordinate_has_everything():
    found = _of([0] * 99 + [3])
    assert (found.to_frame()["mass"] == 1).all()
    assert found.participation == pytest.approx(1 / 100)
    assert math.isnan(found.top["0.001"])  # a tenth of a coordinate
    assert found.top["0.01"] == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 1e-30, 1e6]), min_size=1, max_size=300))
def test_mass_against_sorting(values):
    # Would catch: a curve shifted by one coordinate, or one that does not end at one.
    found = _of(values)
    if not sum(values):
        assert found.outcome == "zero_fisher"
        assert found.to_frame()["mass"].isna().all()
        return
    ordered = sorted(np.float32(values).astype(float), reverse=True)
    for row in found.to_frame().itertuples():
        assert row.k == round(row.fraction * len(values))
        assert row.mass == pytest.approx(sum(ordered[: row.k]) / sum(ordered), rel=1e-6)
    assert row.fraction == 1


def test_band_is_one_halfs_order_and_the_others_mass():
    # Would catch: mass read in the half that chose the order, which is the optimistic curve.
    fisher = fisher_of(draw({"a": (30, 4), "b": (50,)}, 6), halves=True)
    frame = concentration(fisher).to_frame()
    first, second = (
        np.concatenate([d.double().numpy().ravel() for d in h.diagonal().values()])
        for h in fisher.halves
    )
    for row in frame.itertuples():
        masses = [
            chosen[np.argsort(-by, kind="stable")[: row.k]].sum() / chosen.sum()
            for by, chosen in ((first, second), (second, first))
        ]
        assert row.low == pytest.approx(min(masses), rel=1e-5)
        assert row.high == pytest.approx(max(masses), rel=1e-5)


def test_pure_noise_is_unmasked_by_the_band():
    # All coordinates are equal in truth; one example makes them look concentrated.
    # Would catch: concentration reported where there is none but sampling noise.
    rng = np.random.default_rng(0)
    fisher = fisher_of({"w": rng.chisquare(1, (2, 20_000))}, halves=True)
    found = concentration(fisher)
    row = found.to_frame().set_index("k").loc[2000]
    assert row["mass"] > 0.3
    assert row["high"] == pytest.approx(0.1, abs=0.02)
    assert found.participation < 0.6
    assert found.participation_halves == pytest.approx(1, abs=0.05)


def test_true_concentration_survives_the_halves():
    # Would catch: a band that is always near the diagonal.
    truth = np.r_[np.full(100, 1000.0), np.ones(9900)]
    rng = np.random.default_rng(0)
    fisher = fisher_of({"w": truth * rng.gamma(20, size=(8, 10_000))}, halves=True)
    found = concentration(fisher)
    row = found.to_frame().set_index("k").loc[100]
    assert row["low"] > 0.9
    expected = truth.sum() ** 2 / np.square(truth).sum() / len(truth)
    assert found.participation_halves == pytest.approx(expected, rel=0.05)
    assert found.outcome == "ok"


def test_without_halves_there_is_no_band():
    found = _of([1, 2, 3])
    assert found.outcome == "no_halves"
    assert found.to_frame()[["low", "high"]].isna().all(axis=None)
    assert math.isnan(found.participation_halves)


def test_groups_are_coordinates():
    fisher = fisher_of(draw({"a": (20, 5)}), structure="grouped")
    assert concentration(fisher).n == 20
