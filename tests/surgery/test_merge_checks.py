"""What can't be merged is named, and real models merge as they should."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.surgery import merge
from oracles import models, nets, rows
from structures.matrices import CASES
from surgery.bags import bag, flat, own, pair


def tuned(model: nn.Module, seed: int) -> nn.Module:
    """A copy with every parameter moved a little."""
    other = copy.deepcopy(model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return other


def snapshot(model):
    return {
        n: (id(t), t.data_ptr(), t.detach().clone(), t.requires_grad, t.grad)
        for n, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    }


def same(a, b):
    return list(a) == list(b) and all(
        x[:2] == b[n][:2] and torch.equal(x[2], b[n][2]) and x[3:] == b[n][3:] for n, x in a.items()
    )


# Would catch: a tied tensor merged twice or untied, Conv1D transposed, inputs changed or shared
# with the result, tensors that the Fisher covers but the merge forgets.
@pytest.mark.parametrize("structure", ["diagonal", "kfac"])
@pytest.mark.parametrize("name", ["gpt2", "llama-untied", "qwen2-tied", "mlp"])
def test_real_models(name, structure):
    case = models.case(name)
    both = [tuned(case.model, seed) for seed in (1, 2)]
    fishers = [
        fs.estimate(m, rows.examples(case.rows), structure=structure, progress=False) for m in both
    ]
    before, state = [snapshot(m) for m in both], torch.get_rng_state()
    merged = merge(both, fishers, weights=[1, 2], normalize=False)
    assert all(map(same, before, map(snapshot, both)))
    assert torch.equal(state, torch.get_rng_state())
    held = [dict(m.named_parameters()) for m in (*both, merged.model)]
    pointers = [{p.data_ptr() for p in h.values()} for h in held]
    assert not pointers[2] & (pointers[0] | pointers[1])
    assert list(held[0]) == list(held[2])
    names = [
        list(dict(m.named_parameters(remove_duplicate=False))) for m in (both[0], merged.model)
    ]
    assert names[0] == names[1]
    covered = {n for n in held[0] if "simultaneous" not in rule_of(merged, n)}
    assert (structure == "kfac") == (len(covered) < len(held[0]))
    diagonals = [f.diagonal() for f in fishers]
    for n in covered:
        if rule_of(merged, n) != "elementwise":
            continue
        one, two = (w * d[n].double() for w, d in zip([1, 2], diagonals, strict=True))
        mean = (held[0][n] + 2 * held[1][n]).detach().double() / 3
        found = (one * held[0][n] + two * held[1][n]) / (one + two)
        expected = torch.where(one + two > 0, found, mean).float()
        torch.testing.assert_close(held[2][n].detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    for number, fisher in enumerate(fishers):
        move = {n: (held[2][n] - held[number][n]).detach().double() for n in held[2]}
        assert merged.costs[number] == pytest.approx(0.5 * fisher.quadratic(move), rel=1e-6)
    mean = merge(both, fishers, weights=[1, 2], method="mean")
    weighted = [np.dot([1, 2], m.costs) for m in (merged, mean)]
    assert weighted[0] < weighted[1]


def rule_of(merged, name):
    return merged.table.set_index("tensor").loc[name].rule.iloc[0]


# Would catch: half precision that is averaged in half precision (the mean of a weight and its
# neighbour is one of them), and a merged model of another type.
def test_half_precision_is_merged_in_float32():
    case = models.fresh("mlp")
    both = [tuned(case.model, seed).to(torch.bfloat16) for seed in (1, 2, 3)]
    merged = merge(both, method="mean").model
    for n, p in merged.named_parameters():
        exact = sum(m.get_parameter(n).detach().double() for m in both) / 3
        assert p.dtype == torch.bfloat16
        assert torch.equal(p.detach(), exact.to(torch.bfloat16))


# Would catch: gradients, modes or flags of the first model that are lost, or carried along.
def test_the_result_is_the_first_model_with_other_weights():
    case = models.fresh("gpt2")
    one, two = tuned(case.model, 1).train(), tuned(case.model, 2)
    one.transformer.wpe.weight.requires_grad_(False)
    for p in one.parameters():
        p.grad = torch.ones_like(p)
    merged = merge([one, two], method="mean").model
    assert merged.training
    assert not merged.transformer.wpe.weight.requires_grad
    assert all(p.grad is None for p in merged.parameters())
    assert all(p.grad is not None for p in one.parameters())


# Would catch: a table that can't be stored, or that takes the model along.
def test_the_result_is_a_table():
    both, fishers = pair("kfac shared joint")
    merged = merge(both, fishers)
    stored = json.loads(json.dumps(merged.to_dict()))
    assert set(stored) == {"method", "outcome", "table"}
    assert len(stored["table"]) == 2 * len(CASES["kfac shared joint"].parameters)
    frame = merged.to_frame()
    frame["cost"] = 0.0
    assert sum(merged.costs) > 0
    assert "simultaneous" in merged._repr_html_()


def changed(model, name, tensor):
    other = copy.deepcopy(model)
    owner, _, leaf = name.rpartition(".")
    setattr(other.get_submodule(owner), leaf, nn.Parameter(tensor))
    return other


def unlike():
    mlp, deep = models.case("mlp").model, models.case("resnet").model
    stats = copy.deepcopy(deep)
    norm = next(m for m in stats.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean.add_(1)
    tied, untied = models.llama(tie_word_embeddings=True), models.llama()
    more = copy.deepcopy(mlp)
    more.register_parameter("extra", nn.Parameter(torch.ones(1)))
    integers = [copy.deepcopy(mlp) for _ in range(2)]
    for i, m in enumerate(integers):
        weight = torch.full((6, 8), i, dtype=torch.int8)
        m.second.weight = nn.Parameter(weight, requires_grad=False)
    broken = copy.deepcopy(mlp)
    with torch.no_grad():
        broken.second.weight[0, 0] = float("nan")
    return {
        "class": ([mlp, deep], {}, r"models\[1\].*a MLP and a ResNet"),
        "shape": (
            [mlp, changed(mlp, "second.weight", torch.ones(6, 9))],
            {},
            r"'second.weight' is float32 \(6, 8\) and float32 \(6, 9\)",
        ),
        "dtype": (
            [mlp, changed(mlp, "second.weight", torch.ones(6, 8).half())],
            {},
            r"'second.weight' is float32 \(6, 8\) and float16",
        ),
        "name": ([mlp, more], {}, r"'extra' is absent and float32 \(1,\)"),
        "ties": ([untied, tied], {}, r"parameter 'lm_head.weight' is lm_head.weight and model.emb"),
        "heads": (
            [models.gpt2(), models.gpt2(n_head=4)],
            {},
            "config.num_attention_heads is 2 and 4",
        ),
        "buffers": ([deep, stats], {}, r"buffer '.*running_mean' differs.*buffers='first'"),
        "integers": (integers, {}, "'second.weight' holds integers that differ"),
        "base": ([mlp, mlp], {"method": "ties", "base": deep}, r"models\[0\] and base can't"),
        "nan": ([mlp, broken], {}, "second.weight"),
        "one": ([mlp], {}, "models holds 1"),
        "none": ([], {}, "models holds 0"),
        "no module": ([mlp, "mlp"], {}, r"models\[1\] is a str"),
    }


UNLIKE = ["class", "shape", "dtype", "name", "ties", "heads", "buffers", "integers", "base"]
UNLIKE += ["nan", "one", "none", "no module"]


# Would catch: a KeyError, a broadcast, tensors skipped without a word.
@pytest.mark.parametrize("how", UNLIKE)
def test_models_that_are_unlike(how):
    both, options, said = unlike()[how]
    with pytest.raises(fs.FisherscopeError, match=said):
        merge(both, **{"method": "mean", **options})


# Would catch: buffers that are averaged, or taken from the last model.
def test_buffers_of_the_first_model():
    both, *_ = unlike()["buffers"]
    merged = merge(both, method="mean", buffers="first").model
    for (n, a), b in zip(both[0].named_buffers(), merged.buffers(), strict=True):
        assert torch.equal(a, b), n
        assert a is not b


def misfits():
    both, fishers = pair("diagonal")
    shapes = CASES["diagonal"].parameters
    identity = fishers[1].identity

    def other(**fields):
        changed = dataclasses.replace(identity, **fields)
        return [fishers[0], dataclasses.replace(fishers[1], identity=changed)]

    layered = pair("kfac separate")
    joint = bag(CASES["kfac separate"].parameters, 1)
    return {
        "swapped": (both, fishers[::-1], r"fishers\[0\] was not.*it is that of models\[1\]"),
        "foreign": (
            both,
            [fishers[0], own("diagonal", bag(shapes, 5), 3)],
            r"fishers\[1\] was not",
        ),
        "few": (both, fishers[:1], "2 models, but 1 fishers"),
        "no fisher": (both, [fishers[0], fishers[1].diagonal()], r"fishers\[1\] is a dict"),
        "type": (both, other(fisher_type="type-2"), "fisher_type is 'empirical' and 'type-2'"),
        "unit": (both, [fishers[0], own("diagonal", both[1], 3, unit="token")], "unit is"),
        "structure": (both, [fishers[0], own("grouped", both[1], 3)], "structure is"),
        "blocks": (
            [layered[0][0], joint],
            [layered[1][0], reordered(own("kfac separate", joint, 3))],
            "block 0 is",
        ),
        "floor": (both, fishers, "floor=-1"),
        "iterations": (both, fishers, "iterations=0"),
    }


def reordered(fisher):
    return dataclasses.replace(fisher, layout=fisher.layout[::-1])


OPTIONS = {"floor": {"floor": -1.0}, "iterations": {"iterations": 0}}
MISFITS = ["swapped", "foreign", "few", "no fisher", "type", "unit", "structure", "blocks"]
MISFITS += ["floor", "iterations"]


# Would catch: Fishers of other weights, or of unlike things, that are weighed against each other.
@pytest.mark.parametrize("how", MISFITS)
def test_fishers_that_do_not_fit(how):
    both, fishers, said = misfits()[how]
    with pytest.raises(fs.FisherscopeError, match=said):
        merge(both, fishers, **OPTIONS.get(how, {}))


# Would catch: a refusal of what may differ: data, seeds and the number of draws.
def test_fishers_of_other_data_and_draws_fit():
    both = [bag(CASES["diagonal"].parameters, seed) for seed in (0, 1)]
    fishers = [own("diagonal", m, 10 + i, draws=2 + i) for i, m in enumerate(both)]
    assert np.isfinite(flat(merge(both, fishers).model)).all()


# Would catch: an in-place change of a module that several models share, e.g. by a shallow copy.
def test_a_model_merged_with_itself():
    model = nets.MLP(3)
    merged = merge([model, model], method="mean").model
    for a, b in zip(model.parameters(), merged.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
