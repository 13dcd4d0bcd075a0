from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from fisherscope.errors import IdentityError, ParameterError, TaskError
from fisherscope.studies.percolation.bench import Change
from fisherscope.studies.percolation.functional import Curve
from fisherscope.studies.percolation.pairing import paired
from fisherscope.studies.percolation.threshold import Fall, fall, ratio

OPTIONS = {
    "orders": ("fisher", "inverse", "random"), "side": 0, "candidates": 0, "structure": False,
    "repetitions": 2, "points": 7, "max_examples": None,
}  # fmt: skip


def rows(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=g)
    return [(x, (x @ torch.randn(4, 3, generator=torch.Generator().manual_seed(9))).argmax(1))]


def study(seed=0, steps=80, width=10, data=None, **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    (x, y) = rows()[0]
    optimizer = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    fisher = fs.estimate(net, rows(), progress=False)
    return fs.percolation(
        net, {"a": fisher}, {"a": data or rows()}, **OPTIONS | options
    )  # fmt: skip


@pytest.fixture(scope="module")
def two():
    return study(0), study(1, steps=12)


# Would catch: draws that are not the same for both, and a ratio or difference the wrong way round.
def test_a_model_does_not_differ_from_itself(two):
    found = fs.compare_percolation({"one": two[0], "again": two[0]})
    midpoints = found.differences[found.differences["quantity"] == "midpoint"]
    assert (midpoints[["value", "low", "high"]] == 1).to_numpy().all()
    robust = found.differences[found.differences["quantity"] == "robustness"]
    assert (robust[["value", "low", "high"]] == 0).to_numpy().all()
    assert (found.differences["verdict"] == "not_resolved").all()


# Would catch: values of another order or model, intervals that do not belong to the value, and
# a verdict that does not follow from the interval.
def test_differences_are_those_of_the_tables(two):
    found = fs.compare_percolation({"one": two[0], "two": two[1]})
    assert list(dict.fromkeys(found.thresholds["model"])) == ["one", "two"]
    alone = {"one": two[0], "two": two[1]}
    for row in found.differences.to_dict("records"):
        a, b = (
            next(
                r["value"]
                for r in alone[row[f"model_{side}"]].thresholds.to_dict("records")
                if (r["order"], r["quantity"], r["on"]) == (row["order"], row["quantity"], "a")
            )
            for side in "ab"
        )
        value = b / a if row["compared"] == "ratio" else b - a
        assert row["value"] == pytest.approx(value)
        assert row["low"] <= row["value"] <= row["high"]
        same = 1.0 if row["compared"] == "ratio" else 0.0
        out = not row["low"] <= same <= row["high"]
        assert (row["verdict"] == "resolved") == out
    swapped = fs.compare_percolation({"two": two[1], "one": two[0]}).differences
    for x, y in zip(found.differences.to_dict("records"), swapped.to_dict("records"), strict=True):
        back = 1 / y["value"] if x["compared"] == "ratio" else -y["value"]
        assert x["value"] == pytest.approx(back)


def made(losses, tokens=None):
    """A curve of given losses [repetitions, points, examples] and its task."""
    losses = np.array(losses, dtype=np.float64)
    sums = np.stack([losses, losses, losses], axis=2)
    n = losses.shape[-1]

    class Task:
        name, ids, uninformed = "a", tuple(map(str, range(n))), 1.0

    Task.tokens = np.ones(n) if tokens is None else np.array(tokens)
    removed = np.array([0, 1, 10, 100])
    return Curve("weight", Change(), "fisher", "a", removed, 100, {"a": sums}), Task


# Would catch: a comparison that is not paired. Examples differ far more from each other than the
# two curves do, so that only pairs can tell them apart.
def test_pairs_resolve_what_intervals_alone_do_not():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 0.6, 12)
    steps = np.array([0.0, 0.1, 0.5, 1.0])
    base = hard[None, :] + (1.2 - hard[None, :]) * steps[:, None]
    worse = base + np.array([0.0, 0.02, 0.02, 0.0])[:, None]
    falls = [fall(curve, task, 0) for curve, task in (made([base]), made([worse]))]
    row = paired("robustness", *falls)
    assert row["verdict"] == "resolved" and row["high"] < 0
    spans = [np.quantile(f.robustness()[1:], [0.025, 0.975]) for f in falls]
    assert spans[1][1] > spans[0][0]
    again = [fall(curve, task, seed) for seed, (curve, task) in enumerate([made([base])] * 2)]
    other = again[1].robustness() - again[0].robustness()
    assert np.ptp(other[1:]) > 0  # another seed would have other examples


# Would catch: draws in which neither threshold is reached being left out, which would make the
# interval narrower the less is known.
def test_what_could_be_anything_widens_the_ratio():
    inf = np.inf
    row = ratio(np.array([2.0, inf, 2.0, 2.0, 2.0]), np.array([1.0, inf, 1.0, 1.0, 1.0]), 9)
    assert (row["value"], row["low"], row["high"]) == (2.0, 0.0, inf)
    assert ratio(np.array([inf, 1.0]), np.array([1.0, 1.0]), 9)["outcome"] == "not_reached"
    assert ratio(np.array([1.0, 1.0]), np.array([1.0, 1.0]), 1)["outcome"] == "too_few_examples"


def test_an_uninformed_model_has_nothing_to_compare():
    known, lost = made([np.full((4, 5), 0.2)]), made([np.full((4, 5), 1.5)])
    row = paired("midpoint", *(fall(curve, task, 0) for curve, task in (known, lost)))
    assert row["outcome"] == "no_better_than_uninformed" and row["verdict"] == "not_resolved"
    assert isinstance(fall(*known, 0), Fall)


# Would catch: pairs of unlike examples, seeds or tasks, which are no pairs.
def test_what_makes_no_pairs_is_refused(two):
    one, other = two
    with pytest.raises(ParameterError, match="at least two"):
        fs.compare_percolation({"one": one})
    with pytest.raises(ParameterError, match="studies\\['b'\\] is a int"):
        fs.compare_percolation({"a": one, "b": 3})
    with pytest.raises(ParameterError, match="holds 2 models"):
        both = fs.compare_percolation({"a": one, "b": other})
        fs.compare_percolation({"a": one, "b": both})
    with pytest.raises(ParameterError, match="seeds 0 and 1"):
        fs.compare_percolation({"a": one, "b": dataclasses.replace(other, seed=1)})
    with pytest.raises(ParameterError, match="in common"):
        fs.compare_percolation({"a": one, "b": study(0, removal="mean")})
    with pytest.raises(IdentityError, match="other examples"):
        fs.compare_percolation({"a": one, "b": study(0, data=rows(5))})
    renamed = {"model": {"b": other.tasks["model"]["a"]}}
    with pytest.raises(TaskError, match="'a' is in one of"):
        fs.compare_percolation({"a": one, "b": dataclasses.replace(other, tasks=renamed)})


# Would catch: a winner named although another order keeps as much, and a comparison of models
# that says resolved where the table does not.
def test_sentences_follow_the_verdicts(two):
    found = fs.compare_percolation({"one": two[0], "two": two[1]})
    said = " ".join(found.findings())
    for row in found.differences.to_dict("records"):
        if row["quantity"] == "midpoint" and row["outcome"] == "ok" and row["order"] == "fisher":
            word = "not resolved" if row["verdict"] == "not_resolved" else "resolved"
            assert f"a, weights in Fisher order: two is lost at {row['value']:.3g} times" in said
            assert f"the fraction of one, {word}." in said
    study_ = copy.copy(two[0])
    curves = study_.measured["model"]
    inverse = next(c for c in curves if c.order == "inverse")
    best = max(
        study_.thresholds.to_dict("records"),
        key=lambda r: r["value"] if r["quantity"] == "robustness" else -1,
    )
    twin = {"random", "inverse", "fisher"} - {best["order"]}
    same = dataclasses.replace(
        study_,
        measured={"model": tuple(
            dataclasses.replace(c, order=o, by="" if o == "random" else "a", sums=inverse.sums,
                                removed=inverse.removed)
            for c, o in zip(curves, (best["order"], *twin), strict=True)
        )},
    )  # fmt: skip
    assert "not resolved: on average" in " ".join(same.findings())
    assert "longest in" not in " ".join(same.findings())
