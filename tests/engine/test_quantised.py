"""Scores of weights that are stored as integers, against a model that stores them as they are."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine.displace import displaced
from fisherscope.engine.layers.linear import LinearRule
from fisherscope.engine.selection import select
from fisherscope.errors import CoverageError, ParameterError
from oracles import brute, models, quantised, rows
from oracles.checks import compare, slow

# The eight-bit layer of bitsandbytes also rounds its inputs. Only the first layer of the model
# has the same inputs to the last bit alone and in a batch; elsewhere one of them may round to
# the next integer, and the scores of the model itself depend on it.
ENDINGS = {
    "bnb-8bit": ("0.self_attn.q_proj", "0.self_attn.v_proj"),
    "views": ("o_proj", "down_proj"),  # those without a bias
}
USUAL = ("q_proj", "o_proj", "down_proj")


@cache
def built(kind: str) -> tuple[nn.Module, nn.Module, list[str]]:
    """A quantised model, its twin, and the names of the quantised weights."""
    if kind.startswith("bnb"):
        pytest.importorskip("bitsandbytes", reason="an optional oracle: bitsandbytes itself")
    torch.manual_seed(0)
    model = models.randomise(models.qwen2())
    names = quantised.quantise(model, kind, ENDINGS.get(kind, USUAL))
    return model, brute.double(quantised.unquantised(model)), names


# Would catch: scores of the shape of the stored bytes, of the codes instead of the matrix
# (a scale forgotten), a use attributed to the wrong example, quantised weights left out of a
# request or taken into one that did not name them.
@pytest.mark.parametrize("unit", ["example", "token"])
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_against_the_unquantised_twin(kind, unit):
    model, twin, names = built(kind)
    data = rows.text()
    fisher = fs.estimate(
        model, rows.examples(data), unit=unit, parameters="*", batch_size=3, progress=False
    )
    expected, _ = brute.diagonal(twin, data, "causal-lm", unit)
    compare(fisher.sums, expected)
    assert not slow(fisher)
    own = fisher.identity.parameters
    assert all(own[n] == tuple(expected[n].shape) for n in names)
    whole = fs.estimate(model, rows.examples(data), unit=unit, progress=False)
    assert list(whole.sums) == [n for n in expected if n not in names]


# Would catch: groups made from the stored shape, labels drawn elsewhere than for other weights.
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_grouped_and_mc(kind):
    model, twin, names = built(kind)
    data, options = rows.text(), {"parameters": names, "batch_size": 2, "progress": False}
    fisher = fs.estimate(model, rows.examples(data), structure="grouped", **options)
    expected, _ = brute.diagonal(twin, data, "causal-lm")
    some = {n: expected[n].sum(1, keepdim=True) for n in fisher.sums}
    assert sorted(some) == sorted(names)
    compare(fisher.sums, some)
    drawn = fs.estimate(model, rows.examples(data), fisher_type="mc", draws=2, seed=3, **options)
    expected, _ = brute.mc(twin, data, "causal-lm", seed=3, draws=2)
    compare(drawn.sums, {n: expected[n] for n in drawn.sums})


# Would catch: a slow path that finds no gradient of an integer and reports zeros.
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_the_slow_path_is_exact_too(kind, monkeypatch):
    original = LinearRule.scores

    def doubled(self, saved, gradient, batch):
        return original(self, saved, 2 * gradient, batch)

    monkeypatch.setattr(LinearRule, "scores", doubled)
    model, twin, names = built(kind)
    data = rows.text()
    fisher = fs.estimate(model, rows.examples(data), parameters=names, progress=False)
    assert slow(fisher) == set(names)
    expected, _ = brute.diagonal(twin, data, "causal-lm")
    compare(fisher.sums, {n: expected[n] for n in fisher.sums})


# Would catch: a weight shared by two layers that counts one of them.
def test_integers_shared_by_two_layers():
    model, _, names = built("bytes")
    first, second = (model.get_submodule(n.removesuffix(".weight")) for n in names if "o_proj" in n)
    held = second.weight, second.scale
    second.weight, second.scale = first.weight, first.scale
    try:
        twin = brute.double(quantised.unquantised(model))
        layers = twin.model.layers
        layers[1].self_attn.o_proj.weight = layers[0].self_attn.o_proj.weight
        expected, _ = brute.diagonal(twin, rows.text(), "causal-lm")
        options = {"parameters": "*.o_proj.*", "progress": False}
        fisher = fs.estimate(model, rows.examples(rows.text()), **options)
    finally:
        second.weight, second.scale = held
    compare(fisher.sums, {n: expected[n] for n in fisher.sums})
    assert list(fisher.sums) == ["model.layers.0.self_attn.o_proj.weight"]


# Would catch: a displacement of a quantised weight that moves nothing, so that the measured
# damage is zero; a hook that stays behind.
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_displaced_weights(kind):
    model, _, names = built(kind)
    twin = quantised.unquantised(model)
    row = rows.text()[2]
    g = torch.Generator().manual_seed(0)
    parameters = select(model, names)
    delta = {n: 0.1 * torch.randn(p.shape, generator=g) for n, p in parameters.items()}
    with torch.no_grad():
        before = brute.outputs(model, row)
        for n, d in delta.items():
            twin.get_parameter(n).add_(d)
        expected = brute.outputs(twin, row)
        with displaced(parameters, delta):
            found = brute.outputs(model, row)
        assert torch.equal(brute.outputs(model, row), before)
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Would catch: first and second order, or the measurement, of another weight than the one moved.
def test_damage_by_moving_a_quantised_weight():
    model, _, names = built("nibbles")
    twin = quantised.unquantised(model)
    data = rows.examples(rows.text())
    g = torch.Generator().manual_seed(1)
    delta = {n: 0.02 * torch.randn(twin.get_parameter(n).shape, generator=g) for n in names}
    options = {"fisher_type": "empirical", "progress": False}
    found = fs.damage(model, data, delta, **options).to_frame()
    expected = fs.damage(twin, data, delta, **options).to_frame()
    numbers = found.select_dtypes("number")
    assert len(numbers.columns)
    torch.testing.assert_close(
        torch.from_numpy(numbers.to_numpy(float)),
        torch.from_numpy(expected[numbers.columns].to_numpy(float)),
        rtol=2e-3,
        atol=1e-5,
        equal_nan=True,
    )
    with pytest.raises(ParameterError, match="shape"):
        fs.damage(model, data, {names[0]: torch.zeros(3, 3)}, **options)


# Would catch: integers that stand for no matrix, silently given a score of zero.
def test_other_integers_are_refused_by_name():
    model = nn.Sequential(nn.Linear(5, 3))
    model.counts = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    data = rows.examples(rows.points(4, (5,), classes=3))
    with pytest.raises(CoverageError, match="counts hold integers"):
        fs.estimate(model, data, parameters="*", progress=False)
    assert set(fs.estimate(model, data, progress=False).sums) == {"0.weight", "0.bias"}


# Would catch: adapters on a quantised base that see something else than the base computes.
@pytest.mark.parametrize("kind", ["bytes", "bnb-8bit", "bnb-4bit"])
def test_adapters_on_a_quantised_base(kind):
    if kind.startswith("bnb"):
        pytest.importorskip("bitsandbytes", reason="an optional oracle: bitsandbytes itself")
    torch.manual_seed(0)
    model = models.llama()
    plain = models.randomise(model)
    quantised.quantise(model, kind, ENDINGS.get(kind, USUAL))
    twin = quantised.unquantised(plain)
    adapted = models.lora(model)
    expected = models.lora(twin)
    g = torch.Generator().manual_seed(2)
    for name, p in expected.named_parameters():
        if "lora_" in name:
            p.data = 0.3 * torch.randn(p.shape, generator=g)
            adapted.get_parameter(name).data = p.data.clone()
    data = rows.text()
    options = {"parameters": "*lora_*", "batch_size": 3, "progress": False}
    fisher = fs.estimate(adapted.eval(), rows.examples(data), **options)
    truth, _ = brute.diagonal(brute.double(expected), data, "causal-lm")
    compare(fisher.sums, {n: t for n, t in truth.items() if "lora_" in n})
    assert not slow(fisher)
