"""Masks of heads and hidden units against the models themselves."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from analysis.builders import fisher_of, inputs, like, model
from fisherscope.analysis import masks
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import ParameterError

# Every projection that reads heads or hidden units, and which projections write them.
HEADS = {
    "gpt2": ("attn.c_proj", "attn.c_attn"),
    "llama": ("o_proj", "[qkv]_proj"),
    "qwen2": ("o_proj", "[qkv]_proj"),
    "qwen3": ("o_proj", "[qkv]_proj"),
    "qwen3_moe": ("o_proj", "[qkv]_proj"),
    "phi3": ("o_proj", "qkv_proj"),
    "gpt_neox": ("attention.dense", "query_key_value"),
    "bloom": ("self_attention.dense", "query_key_value"),
    "falcon_mha": ("self_attention.dense", "query_key_value"),
    "falcon_mqa": ("self_attention.dense", "query_key_value"),
    "falcon_gqa": ("self_attention.dense", "query_key_value"),
    "gpt_bigcode_mqa": ("attn.c_proj", "attn.c_attn"),
    "gpt_bigcode_mha": ("attn.c_proj", "attn.c_attn"),
    "opt": ("out_proj", "[qkv]_proj"),
    "bert": ("attention.output.dense", "query|key|value"),
    "distilbert": ("out_lin", "[qkv]_lin"),
    "albert": ("attention.dense", "query|key|value"),
    "modernbert": ("attn.Wo", "Wqkv"),
    "vit": ("o_proj", "[qkv]_proj"),
    "t5": ("Attention.o", "Attention.[qkv]"),
    "bart": ("out_proj", "[qkv]_proj"),
}
NEURONS = {
    "gpt2": ("mlp.c_proj", "c_fc"),
    "llama": ("down_proj", "(up|gate)_proj"),
    "qwen3_next": ("down_proj", "(up|gate)_proj"),
    "phi3": ("down_proj", "gate_up_proj"),
    "gpt_neox": ("dense_4h_to_h", "dense_h_to_4h"),
    "bloom": ("dense_4h_to_h", "dense_h_to_4h"),
    "falcon_gqa": ("dense_4h_to_h", "dense_h_to_4h"),
    "gpt_bigcode_mqa": ("mlp.c_proj", "c_fc"),
    "opt": ("fc2", "fc1"),
    "bert": (r"layer\.\d+\.output.dense", "intermediate.dense"),
    "distilbert": ("lin2", "lin1"),
    "albert": ("ffn_output", "ffn"),
    "modernbert": ("mlp.Wo", "Wi"),
    "vit": ("mlp.fc2", "fc1"),
    "t5": ("DenseReluDense.wo", "DenseReluDense.wi"),
    "bart": ("fc2", "fc1"),
}
# Key-value heads of each attention module: what can be removed.
UNITS = {"falcon_mqa": 1, "gpt_bigcode_mqa": 1, "qwen2": 1}
UNITS |= dict.fromkeys(("llama", "qwen3", "qwen3_moe", "phi3", "falcon_gqa"), 2)
CASES = [("head", f) for f in HEADS] + [("neuron", f) for f in NEURONS]


def _paths(m, pattern):
    return [p for p, _ in m.named_modules() if re.search(rf"(^|\.){pattern}$|{pattern}$", p)]


def _run(m, family, *, paths=(), record=None, silence=None):
    """The output; what modules read is recorded, or set to zero at given places."""
    handles = []
    for path in silence or paths:

        def hook(_module, args, path=path):
            if record is not None:
                # Of a shared layer the first use, whose input is the same in both runs.
                record.setdefault(path, args[0].detach().clone())
                return None
            return (args[0].masked_fill(silence[path], 0), *args[1:])

        handles.append(m.get_submodule(path).register_forward_pre_hook(hook))
    with torch.no_grad():
        out = m(**inputs(family)).logits
    for handle in handles:
        handle.remove()
    return out


def _masked(m, found, only=""):
    changed = copy.deepcopy(m)
    with torch.no_grad():
        for name, p in changed.named_parameters():
            if name in found and re.search(only, name):
                p.mul_(found[name])
    return changed


def _gone(m, path, found):
    """Which inputs of a linear layer have no weights left."""
    mask = found[f"{path}.weight"]
    inputs_first = not isinstance(m.get_submodule(path), nn.Linear)
    kept = mask if inputs_first else mask.T
    assert (kept.all(1) | ~kept.any(1)).all(), "a column is removed in part"
    return ~kept.any(1)


def _fisher(m, seed=0):
    return fisher_of(like(m, 1, seed=seed), model_fingerprint=model_fingerprint(m))


@pytest.mark.parametrize(("structure", "family"), CASES)
def test_removing_by_masks_is_silencing_the_unit(structure, family):
    # Would catch: rows of another head's query, key or value; a key-value head taken from query
    # heads that stay; the fused layout or the Conv1D dimension mistaken; the gate or the bias of
    # a neighbour. The oracle is the model: what the masks remove must act like zeros where the
    # units' outputs are read, and change nothing else.
    reads, writes = (HEADS if structure == "head" else NEURONS)[family]
    m = model(family)
    lone = structure == "head" and UNITS.get(family) == 1
    scope = "global" if lone else "tensor"
    found = masks(_fisher(m), 0.5, model=m, structure=structure, method="random", scope=scope)
    paths = [p for p in _paths(m, reads) if f"{p}.weight" in found]
    gone = {path: _gone(m, path, found) for path in paths}
    assert any(g.any() for g in gone.values())
    assert lone or all(g.any() and not g.all() for g in gone.values())
    torch.testing.assert_close(_run(_masked(m, found), family), _run(m, family, silence=gone))

    # Would catch: value or up rows (or their biases) that are left behind. Without them the
    # units' outputs are zero before the projection that reads them.
    before, after = {}, {}
    _run(m, family, paths=paths[:1], record=before)
    changed = _masked(m, found, rf"({writes})\.(weight|bias)$")
    _run(changed, family, paths=paths[:1], record=after)
    for path, read in before.items():
        assert not after[path][..., gone[path]].any()
        torch.testing.assert_close(after[path], read.masked_fill(gone[path], 0))


@pytest.mark.parametrize("family", HEADS)
def test_a_head_takes_all_its_slices(family):
    # Would catch: queries and keys left whole (the output can't tell), the bias forgotten, a
    # unit smaller than a key-value head with its queries, a share of heads that is not asked.
    m = model(family)
    found = masks(_fisher(m), 0.5, model=m, structure="head", scope="tensor")
    shapes = {n: tuple(p.shape) for n, p in m.named_parameters()}
    reads, writes = HEADS[family]
    expected = {n for n in shapes if re.search(rf"({writes})\.(weight|bias)$", n)}
    expected |= {f"{p}.weight" for p in _paths(m, reads)}
    assert set(found) == expected
    count = UNITS.get(family, 4)
    share = round(count / 2) / count
    for name, mask in found.items():
        if "decoder" in name and family == "bart":
            share = 0.5
        assert tuple(mask.shape) == shapes[name]
        assert (~mask).double().mean() == pytest.approx(share), name


@pytest.mark.parametrize("family", NEURONS)
def test_a_hidden_unit_takes_all_its_slices(family):
    # Would catch: the gate forgotten, the second half of a fused projection, the bias.
    m = model(family)
    found = masks(_fisher(m), 0.25, model=m, structure="neuron", scope="tensor")
    reads, writes = NEURONS[family]
    names = {n for n, _ in m.named_parameters()}
    expected = {n for n in names if re.search(rf"({writes})\.(weight|bias)$", n)}
    expected |= {f"{p}.weight" for p in _paths(m, reads)} & names
    assert set(found) == expected
    for mask in found.values():
        assert (~mask).double().mean() == pytest.approx(0.25)


def _additive(m, fisher, method):
    theta = {n: p.detach().double().numpy() for n, p in m.named_parameters()}
    f = {n: d.double().numpy() for n, d in fisher.diagonal().items()}
    return {
        n: {"fisher": f[n], "obd": f[n] * theta[n] ** 2 / 2, "magnitude": theta[n] ** 2}[method]
        for n in f
    }


@pytest.mark.parametrize("method", ["fisher", "obd", "magnitude"])
def test_head_scores_by_hand(method):
    # Would catch: the mean of the slices' means, a score of o alone, one slice counted twice, a
    # key-value head scored with the queries of another group, thresholds per layer for global.
    size = 4
    m, scores = model("llama"), {}
    found = masks(_fisher(m), 0.5, model=m, structure="head", method=method)
    s = _additive(m, _fisher(m), method)
    for layer in (0, 1):
        at = f"model.layers.{layer}.self_attn."
        for g in (0, 1):
            q, kv = slice(2 * g * size, 2 * (g + 1) * size), slice(g * size, (g + 1) * size)
            scores[layer, g] = (
                s[at + "q_proj.weight"][q].sum()
                + s[at + "k_proj.weight"][kv].sum()
                + s[at + "v_proj.weight"][kv].sum()
                + s[at + "o_proj.weight"][:, q].sum()
            )
    worst = set(sorted(scores, key=scores.__getitem__)[:2])
    for layer, g in scores:
        kept = found[f"model.layers.{layer}.self_attn.k_proj.weight"][g * size : (g + 1) * size]
        assert bool((~kept).all()) == ((layer, g) in worst)
        assert bool(kept.all()) != ((layer, g) in worst)


@pytest.mark.parametrize("method", ["fisher", "obd", "magnitude"])
def test_scores_of_fused_and_transposed_projections_by_hand(method):
    # Would catch: Conv1D read along the wrong dimension, the bias left out of the score.
    m = model("gpt2")
    fisher = _fisher(m, seed=3)
    s = _additive(m, fisher, method)
    at = "transformer.h.1.attn."
    heads = []
    for h in range(4):
        columns = np.concatenate([
            np.arange(16 * part + 4 * h, 16 * part + 4 * h + 4) for part in range(3)
        ])
        heads.append(
            s[at + "c_attn.weight"][:, columns].sum()
            + s[at + "c_attn.bias"][columns].sum()
            + s[at + "c_proj.weight"][4 * h : 4 * h + 4].sum()
        )
    found = masks(fisher, 0.25, model=m, structure="head", method=method, scope="tensor")
    kept = found[at + "c_proj.weight"].all(1).reshape(4, 4).all(1)
    assert kept.tolist() == [h != int(np.argmin(heads)) for h in range(4)]

    at = "transformer.h.0.mlp."
    units = s[at + "c_fc.weight"].sum(0) + s[at + "c_fc.bias"] + s[at + "c_proj.weight"].sum(1)
    found = masks(fisher, 0.5, model=m, structure="neuron", method=method, scope="tensor")
    expected = units >= np.sort(units)[32]
    np.testing.assert_array_equal(found[at + "c_fc.bias"].numpy(), expected)
    np.testing.assert_array_equal(found[at + "c_proj.weight"].all(1).numpy(), expected)


def test_a_score_in_nats_is_the_quadratic_cost_of_removal():
    # Would catch: the first power of the weights, the worst heads kept, means over elements.
    m = model("llama")
    fisher = _fisher(m)
    found = masks(fisher, 0.5, model=m, structure="head", method="obd")
    parameters = dict(m.named_parameters())

    def cost(removed):
        return fisher.quadratic({n: -parameters[n].detach() * ~k for n, k in removed.items()}) / 2

    others = [
        masks(fisher, 0.5, model=m, structure="head", method="random", seed=seed)
        for seed in range(8)
    ]
    assert any(not torch.equal(o[n], found[n]) for o in others for n in found)
    assert all(cost(found) <= cost(other) * (1 + 1e-6) for other in others)


def _sequential():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 2)
    ).eval()


def test_hidden_units_of_a_plain_classifier():
    # Would catch: a second hidden layer overlooked, one layer's mask overwriting the other's in
    # the matrix between them, outputs of the network removed.
    m = _sequential()
    found = masks(_fisher(m), 0.5, model=m, structure="neuron", scope="tensor")
    first, second = found["0.bias"], found["3.bias"]
    assert (int(first.sum()), int(second.sum())) == (4, 3)
    assert torch.equal(found["0.weight"], first[:, None].expand(8, 3))
    assert torch.equal(found["3.weight"], second[:, None] & first[None])
    assert torch.equal(found["5.weight"], second[None].expand(2, 6))
    assert "5.bias" not in found
    x = torch.randn(5, 3)
    hidden = (m[1](m[0](x)) * first) @ m[3].weight.T + m[3].bias
    expected = (m[4](hidden) * second) @ m[5].weight.T + m[5].bias
    torch.testing.assert_close(_masked(m, found)(x), expected)


def test_random_units_depend_on_seed_and_module_alone():
    # Would catch: the same units in every layer, or others when a layer is left out.
    m = model("llama")
    found = masks(_fisher(m), 0.5, model=m, structure="neuron", method="random", scope="tensor")
    first, second = (found[f"model.layers.{i}.mlp.down_proj.weight"] for i in (0, 1))
    assert not torch.equal(first, second)
    alone = masks(
        _fisher(m),
        0.5,
        model=m,
        structure="neuron",
        method="random",
        scope="tensor",
        protect="*.layers.0.*",
    )
    assert set(alone) == {n for n in found if ".layers.1." in n}
    assert torch.equal(alone["model.layers.1.mlp.down_proj.weight"], second)


@pytest.mark.parametrize("structure", ["head", "neuron"])
def test_exactly_the_asked_share_of_units(structure):
    # Would catch: a quantile; ties that take all or none.
    m = model("gpt2")
    ones = {n: np.ones((1, *p.shape)) for n, p in m.named_parameters()}
    total = 8 if structure == "head" else 128
    name = "attn.c_proj.weight" if structure == "head" else "mlp.c_proj.weight"
    for sparsity in (0, 0.3, 0.5, 0.99):
        found = masks(fisher_of(ones), sparsity, model=m, structure=structure)
        rows = torch.cat([found[f"transformer.h.{i}.{name}"].all(1) for i in (0, 1)])
        units = rows.reshape(total, -1).all(1)
        assert int((~units).sum()) == round(sparsity * total)
        assert units.tolist() == sorted(units.tolist(), reverse=True)


def test_structured_masks_are_not_the_unstructured_ones():
    # Would catch: an option that is accepted and does nothing.
    m = model("gpt2")
    kinds = ("weight", "head", "neuron", "2:4")
    found = {s: masks(_fisher(m), 0.5, model=m, structure=s) for s in kinds}
    assert len({tuple(sorted(f)) for f in found.values()}) == 3
    assert set(found["2:4"]) == set(found["weight"])
    assert any(not torch.equal(found["2:4"][n], found["weight"][n]) for n in found["weight"])


def test_a_module_is_protected_as_a_whole():
    # Would catch: a head removed with its rows protected, so that half of it stays.
    m = model("gpt2")
    for pattern in ("*.h.0.attn.c_proj.weight", "*.h.0.attn.c_attn.bias"):
        found = masks(_fisher(m), 0.5, model=m, structure="head", protect=["default", pattern])
        assert all(".h.1." in name for name in found)
        assert len(found) == 3
    with pytest.raises(ParameterError, match="every head is protected"):
        masks(_fisher(m), 0.5, model=m, structure="head", protect="*attn*")
    with pytest.raises(ParameterError, match="every neuron is protected"):
        masks(_fisher(m), 0.5, model=m, structure="neuron", protect="*c_fc*")


def _part(m, pattern):
    return fisher_of({n: s for n, s in like(m, 1).items() if re.search(pattern, n)})


def test_what_is_not_understood_is_named():
    m = model("llama")
    # Would catch: a head scored and removed by some of its slices.
    with pytest.raises(ParameterError, match=r"lacks .*k_proj.weight.*parameters="):
        masks(_part(m, "q_proj"), 0.5, model=m, structure="head")
    with pytest.raises(ParameterError, match=r"lacks 'model.layers.0.mlp.down_proj.weight'"):
        masks(_part(m, "(up|gate)_proj"), 0.5, model=m, structure="neuron")
    with pytest.raises(ParameterError, match="no attention projection"):
        masks(_fisher(model("mamba")), 0.5, model=model("mamba"), structure="head")
    with pytest.raises(ParameterError, match="no MLP.*'backbone.layers.0.mixer.in_proj'"):
        masks(_fisher(model("mamba")), 0.5, model=model("mamba"), structure="neuron")
    with pytest.raises(ParameterError, match="experts.gate_up_proj.*protect="):
        moe = model("qwen3_moe")
        masks(_fisher(moe), 0.5, model=moe, structure="neuron")
    with pytest.raises(ParameterError, match="estimated on"):
        masks(_fisher(m), 0.5, model=model("gpt2"), structure="head")


def test_couplings_that_would_be_wrong_are_refused():
    # Would catch: units removed that a norm mixes, or that are used elsewhere, or whose layout
    # is a guess.
    normed = nn.ModuleDict({
        "fc1": nn.Linear(4, 8),
        "norm": nn.LayerNorm(8),
        "fc2": nn.Linear(8, 4),
    })
    with pytest.raises(ParameterError, match="'norm'.*normalises the hidden units"):
        masks(_fisher(normed), 0.5, model=normed, structure="neuron")
    glu = nn.ModuleDict({"fc1": nn.Linear(4, 16), "fc2": nn.Linear(8, 4)})
    with pytest.raises(ParameterError, match="'fc1.weight' has 16 outputs and 'fc2.weight' 8"):
        masks(_fisher(glu), 0.5, model=glu, structure="neuron")
    square = nn.Linear(4, 4)
    twice = nn.Sequential(square, nn.ReLU(), square)
    with pytest.raises(ParameterError, match="used in several places"):
        masks(_fisher(twice), 0.5, model=twice, structure="neuron")
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    with pytest.raises(ParameterError, match="no MLP.*'0', '2'"):
        masks(_fisher(mixed), 0.5, model=mixed, structure="neuron")
