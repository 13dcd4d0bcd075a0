"""Fine-tuning without conflicting examples: who is left out, what is paired, and an effect."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.data import halves
from fisherscope.studies.conflict import removal
from fisherscope.studies.conflict.removal import differences, matched
from fisherscope.studies.tuning import Schedule

SCHEDULE = Schedule(steps=40, peak=3e-2)


def labelled(name, n, seed, flip=()):
    """Points with the sign of their first coordinate as class; some labels turned round."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return [
        fs.Example(f"{name}-{i}", {"0": x[i]}, (x[i, 0] > 0).long() ^ (i in flip)) for i in range(n)
    ]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).eval()


@pytest.fixture(scope="module")
def found():
    start = model()
    before = [p.detach().clone() for p in start.parameters()]
    result = removal(
        start,
        labelled("a", 60, 1),
        labelled("b", 60, 2, flip=range(18)),
        held_out=labelled("test", 60, 3),
        remove=18,
        schedule=SCHEDULE,
        seeds=range(8),
    )
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), before, strict=True))
    return result


def test_wrong_labels_conflict_and_leaving_them_out_helps(found):
    # Catches an order from the other end, losses on the half that chose, arms swapped: where a
    # third of the labels of B is wrong, they are what conflicts with A. By chance 5.4 of the first
    # 18 would be wrong ones, with a standard deviation of 1.6.
    wrong = {f"b-{i}" for i in range(18)}
    assert len(wrong & set(found.order[:18])) >= 12
    rows = found.differences.set_index(["arm", "loss"])
    assert rows.loc[("conflicting", "on"), "outcome"] == "better"
    assert rows.loc[("helpful", "on"), "outcome"] == "worse"
    assert rows.loc[("conflicting", "on"), "n_seeds"] == 8


def test_arms_differ_in_nothing_else(found):
    # Catches arms of unlike size or number of steps, and the same random examples every time.
    runs = found.runs
    assert len(runs) == 24 and set(runs["removed"]) == {18} and set(runs["steps"]) == {40}
    assert runs[runs["arm"] == "random"]["loss_on"].nunique() == 8
    assert found.before["on"] > runs["loss_on"].mean()


def test_the_half_that_chooses_is_not_the_half_that_measures(found):
    # Catches conflicts fitted to the examples on which the loss is reported.
    assert found.conflict.n_examples == {"on": 30, "by": 60}
    _, second = halves(labelled("a", 60, 1))
    x, y = torch.stack([e.inputs["0"] for e in second]), torch.stack([e.labels for e in second])
    expected = nn.functional.cross_entropy(model()(x), y).item()
    assert found.before["on"] == pytest.approx(expected, rel=1e-5)


def test_stand_ins_have_about_as_many_tokens_and_are_drawn_from_all():
    # Catches stand-ins that are always short or long, ones taken twice, and the chosen ones
    # barred (the arms would differ more than chance).
    rng = np.random.default_rng(0)
    tokens = {f"e{i:03}": int(n) for i, n in enumerate(rng.integers(3, 200, 300))}
    chosen = sorted(tokens, key=lambda i: -tokens[i])[:60]
    share = []
    for seed in range(10):
        out = matched(chosen, tokens, seed)
        assert len(out) == 60
        total = sum(tokens[i] for i in out)
        assert total == pytest.approx(sum(tokens[i] for i in chosen), rel=0.08)
        share.append(len(out & set(chosen)))
    assert min(share) > 20 and matched(chosen, tokens, 0) != matched(chosen, tokens, 1)
    assert matched(chosen, tokens, 3) == matched(chosen, tokens, 3)


def test_differences_are_paired_by_seed_with_a_t_interval():
    # Catches unpaired differences and a normal quantile in place of Student's.
    gaps, base = np.array([-0.3, -0.1, -0.2]), np.array([1.0, 5.0, 9.0])
    runs = pd.DataFrame([
        {"seed": s, "arm": arm, "loss_on": base[s] + add[s], "loss_by": base[s]}
        for s in range(3)
        for arm, add in (("random", 0 * gaps), ("conflicting", gaps))
    ])
    rows = differences(runs).set_index("loss")
    assert rows.loc["on", "value"] == pytest.approx(-0.2)
    assert rows.loc["on", "high"] == pytest.approx(-0.2 + 4.302653 * 0.1 / math.sqrt(3))
    assert rows.loc["on", "outcome"] == "not_resolved"
    assert rows.loc["by", "value"] == 0 and rows.loc["by", "n_seeds"] == 3
    assert set(differences(runs[runs["seed"] == 0])["outcome"]) == {"too_few_seeds"}


def test_a_fine_tuning_that_diverges_is_a_result():
    # Catches a study that dies with one of its runs, and NaN in the mean of the others.
    result = removal(
        model(),
        labelled("a", 20, 1),
        labelled("b", 12, 2),
        held_out=labelled("test", 8, 3),
        remove=3,
        schedule=Schedule(steps=6, peak=1e38),
        seeds=(0,),
    )
    assert "diverged" in set(result.runs["outcome"])
    assert set(result.differences["outcome"]) == {"too_few_seeds"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("remove", 0), ("remove", 12), ("seeds", (0, 0)), ("metric", "odd"), ("arms", ("random",))],
)
def test_errors_before_any_work(option, value):
    options = {"remove": 3, "schedule": SCHEDULE, "held_out": labelled("test", 8, 3), option: value}
    with pytest.raises(fs.ParameterError, match=option):
        removal(model(), labelled("a", 20, 1), labelled("b", 12, 2), **options)
    with pytest.raises(fs.DataError, match="on="):
        removal(
            model(),
            labelled("a", 3, 1),
            labelled("b", 12, 2),
            held_out=labelled("test", 8, 3),
            remove=3,
            schedule=SCHEDULE,
        )
