from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.errors import ParameterError, TaskError
from fisherscope.studies.interference import interference
from oracles import models, rows


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def classes(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    return x, (x[:, :3] * (1 + seed)).argmax(1)


TASKS = {"a": classes(), "b": classes(seed=1), "c": classes(seed=2)}


def run(model=None, tasks=TASKS, **options):
    given = {"conflicts": False, "progress": False, "scales": (0.1, 1.0)} | options
    return interference(model or network(), tasks, **given)


def test_cells_are_the_damages_of_the_steps():
    # Catches on and by exchanged, a task watched on the examples that made its step, and steps
    # of half the length.
    model = network()
    found = run(model)
    split = {name: fs.data.halves(fs.examples(data)) for name, data in TASKS.items()}
    steps = {name: fs.descent_step(model, s[0], fraction=1.0) for name, s in split.items()}
    assert len(found.cells) == 3 * 3 * 2
    for on in TASKS:
        expected = fs.damage(model, split[on][1], steps, scales=(0.1, 1.0)).table
        got = found.cells[found.cells["on"] == on]
        for key in ("first", "second", "predicted", "measured"):
            np.testing.assert_allclose(got[key], expected[key], rtol=1e-4, atol=1e-8)
        assert list(got["by"]) == list(expected["displacement"])
    assert list(found.matrix().index) == list(found.matrix().columns) == ["a", "b", "c"]
    row = found.cells[(found.cells["by"] == "b") & (found.cells["scale"] == 0.1)].iloc[0]
    length = sum(float(t.square().sum()) for t in steps["b"].values()) ** 0.5
    assert row["step_norm"] == pytest.approx(0.1 * length, rel=1e-4)


def test_layers_and_tensors_add_up():
    # Catches cross terms that are lost or counted twice.
    found = run(measure=False)
    for parts in (found.layers, found.tensors):
        sums = parts.groupby(["on", "by"])[["first", "second"]].sum()
        whole = found.to_frame().set_index(["on", "by"]).loc[sums.index]
        np.testing.assert_allclose(sums["first"], whole["first"], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(sums["second"], whole["second"], rtol=1e-5, atol=1e-9)
    assert found.calibration.empty and found.reliable == 0


def test_the_antisymmetric_part_is_half_the_difference():
    # Catches a sign, a missing half, and resamples that two directions share.
    found = run()
    square = found.matrix()
    for row in found.asymmetry.to_dict("records"):
        a, b = row["a"], row["b"]
        half = (square.loc[a, b] - square.loc[b, a]) / 2
        assert row["antisymmetric"] == pytest.approx(half, rel=1e-5, abs=1e-9)
        assert row["low"] < row["antisymmetric"] < row["high"]
    twice = run(tasks={"a": classes(), "b": classes()}).asymmetry.iloc[0]
    assert twice["outcome"] == "not_resolved"


def test_small_steps_are_predicted_and_every_scale_has_its_row():
    found = run(scales=(0.02, 0.1, 8.0), small=0.1, structures=("diagonal",), draws=20)
    table = found.calibration
    overall = table[table["scale"].isna()].set_index("method")
    assert overall.loc["full", "n"] == 18
    assert overall.loc["full", "slope"] == pytest.approx(1, abs=0.1)
    assert overall.loc["full", "spearman"] > 0.95
    assert set(table["scale"].dropna()) == {0.02, 0.1, 1.0, 8.0}
    assert 0.1 <= found.reliable < 8.0
    assert any("slope" in line for line in found.findings())


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_heads_add_up_to_their_projections(name):
    # Catches rows taken for columns (Conv1D, output projection), key-value heads counted once
    # for every query head, and a second order without the cross terms with the rest.
    case = models.case(name)
    data = rows.examples(case.rows)
    some = {"a": data, "b": data[::-1]}
    found = interference(
        case.model, some, scales=(1.0,), structures=(), conflicts=False, progress=False
    )
    roles = {"gpt2": ["c_attn", "attn.c_proj.weight"], "llama-tied": ["self_attn"]}[name]
    own = found.tensors[found.tensors["tensor"].map(lambda t: any(r in t for r in roles))]
    expected = own.groupby(["on", "by"])[["first", "second"]].sum()
    got = found.heads.groupby(["on", "by"])[["first", "second"]].sum()
    np.testing.assert_allclose(got, expected.loc[got.index], rtol=1e-3, atol=1e-7)


def test_the_damage_through_one_head():
    # Catches heads that are numbered or cut at other places: here only one of them moves.
    case = models.case("llama-tied")
    data = rows.examples(case.rows)
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = dict(case.model.named_parameters())[name]
    heads = case.model.config.num_attention_heads
    width = weight.shape[0] // heads
    move = torch.zeros_like(weight)
    move[width : 2 * width] = 0.1
    steps = {"a": {name: move}, "b": {name: move}}
    found = interference(
        case.model, {"a": data, "b": data}, steps=steps, scales=(1.0,), structures=(),
        conflicts=False, progress=False,
    )  # fmt: skip
    moved = found.heads[found.heads["second"].abs() > 0]
    assert set(zip(moved["role"], moved["head"], strict=True)) == {("q", 1)}
    row = found.to_frame().iloc[0]
    assert moved["second"].iloc[0] == pytest.approx(row["second"], rel=1e-4)


def test_the_model_comes_back():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    run(model, conflicts=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tasks": {"a": classes()}}, TaskError, "at least two"),
        ({"tasks": {"a": classes(), "b": classes(3)}}, TaskError, "'b' has 3 examples"),
        ({"scales": (0.0,)}, ParameterError, "scales"),
        ({"small": -1.0}, ParameterError, "small"),
        ({"steps": {"a": {}}}, ParameterError, "the tasks are"),
    ],
)
def test_bad_input_before_any_long_work(options, error, said):
    with pytest.raises(error, match=said):
        run(**options)
