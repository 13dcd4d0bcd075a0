"""Which of two tasks is the more fragile, and when nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from oracles import models, rows


def task(n, *, scale=1.0, seed=0, width=5, classes=4):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    return scale * torch.randn(n, width, generator=g), labels


def mlp():
    return models.case("mlp").model


# Catches (tensorscope 1.2.6): a ratio of something else than the two damages, the directions
# swapped, a name that is wired in.
def test_both_directions():
    a, b = task(12, seed=1), task(10, scale=3.0, seed=2)
    found = fs.asymmetry(mlp(), a, b, names=("near", "far"), measure=True)
    assert list(found.to_frame()["quantity"]) == ["index", "second", "predicted", "measured"]
    one, two = (fs.step_damage(mlp(), *pair, measure=True) for pair in ((a, b), (b, a)))
    index = found.row("index")
    assert (index["a"], index["b"]) == pytest.approx((one.index.index, two.index.index), rel=1e-5)
    assert index["ratio"] == pytest.approx(one.index.index / two.index.index, rel=1e-5)
    assert index["log_ratio"] == pytest.approx(math.log(index["ratio"]))
    for quantity in ("second", "predicted", "measured"):
        row = found.row(quantity)
        expected = one.damage.table[quantity][0], two.damage.table[quantity][0]
        assert (row["a"], row["b"]) == pytest.approx(expected, rel=1e-5)
        assert row["difference"] == pytest.approx(expected[0] - expected[1], rel=1e-5)
    swapped = fs.asymmetry(mlp(), b, a, names=("far", "near"), measure=True)
    assert swapped.more_fragile == found.more_fragile
    assert swapped.row("index")["log_ratio"] == pytest.approx(-index["log_ratio"])


# Catches (tensorscope 1.2.6): a winner that is named where there is no difference. Two samples of
# one task differ by chance only: at 95% one pair in twenty may seem to.
def test_one_task_twice_is_rarely_resolved():
    outcomes = [
        fs.asymmetry(mlp(), task(20, seed=2 * s + 10), task(20, seed=2 * s + 11), learning_rate=0.1)
        for s in range(8)
    ]
    resolved = [found for found in outcomes if found.outcome != "not_resolved"]
    assert len(resolved) <= 3
    for found in outcomes:
        assert (found.more_fragile is None) == (found.outcome == "not_resolved")


# Catches: an interval so wide that nothing is ever resolved, and the wrong task named.
def test_a_real_difference_is_resolved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    # Task "first" lives on the first input only; the second task's gradient is large there.
    x = torch.randn(40, 2)
    first = (x * torch.tensor([1.0, 0.0]), torch.randint(2, (40,)))
    both = (torch.randn(40, 2) * torch.tensor([1.0, 4.0]) + 1, torch.zeros(40, dtype=torch.long))
    found = fs.asymmetry(model, first, both, names=("first", "both"))
    index = found.row("index")
    assert found.outcome == "ok"
    assert found.more_fragile == ("first" if index["ratio"] > 1 else "both")
    assert index["difference_low"] * index["difference_high"] > 0
    assert index["log_ratio_low"] * index["log_ratio_high"] > 0
    # The sign is known: what "both" does is felt on the first input, where "first" has all its
    # Fisher, and what "first" does is not felt on the second, where "both" has most of its own.
    assert found.more_fragile == "first"


# Catches: a ratio of a gain and a damage, whose sign and size mean nothing.
def test_a_gain_has_no_ratio():
    a = task(30, seed=1)
    found = fs.asymmetry(mlp(), a, (a[0].clone() * 1.01, a[1]), learning_rate=1e-3, measure=True)
    for quantity in ("predicted", "measured"):
        row = found.row(quantity)
        assert row["a"] < 0 > row["b"]
        assert np.isnan([row["ratio"], row["log_ratio"], row["log_ratio_low"]]).all()
        assert row["outcome"] in {"no_ratio", "not_resolved"}
    assert found.row("index")["ratio"] > 0


# Catches: an answer from two examples.
def test_too_few_examples():
    found = fs.asymmetry(mlp(), task(7), task(40, seed=1))
    assert set(found.to_frame()["outcome"]) == {"too_few_examples"}
    assert found.more_fragile is None
    assert np.isfinite(found.row("index")["ratio"])


# Catches: batches of one class, and intervals over one task's examples only.
def test_intervals_are_over_both_tasks_examples():
    a, b = task(30, seed=1), (task(30, seed=2)[0], torch.zeros(30, dtype=torch.long))
    row = fs.asymmetry(mlp(), a, b).row("index")
    width = {k: row[f"{k}_high"] - row[f"{k}_low"] for k in ("a", "b", "difference")}
    together = math.hypot(width["a"], width["b"])
    assert width["difference"] == pytest.approx(together, rel=0.15)


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_language_models_and_the_seed(name):
    # Catches: a bootstrap without a seed.
    case = models.case(name)
    data = rows.examples(case.rows)
    one, two = (fs.asymmetry(case.model, data[:3], data[3:], seed=4) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert one.to_dict()["more_fragile"] is None


def test_options_that_make_no_sense():
    for names in (("a", "a"), ("a",), (1, 2)):
        with pytest.raises(fs.ParameterError, match="names="):
            fs.asymmetry(mlp(), task(8), task(8), names=names)
    with pytest.raises(fs.ParameterError, match="quantity='nats'"):
        fs.asymmetry(mlp(), task(8), task(8)).row("nats")
