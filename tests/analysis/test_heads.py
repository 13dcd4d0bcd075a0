import copy

import pytest
import torch
from torch import nn

from analysis.builders import inputs, model
from fisherscope.analysis.heads import heads
from fisherscope.errors import ParameterError

FAMILIES = [
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "phi3",
    "gpt_neox",
    "bloom",
    "falcon_mha",
    "falcon_mqa",
    "falcon_gqa",
    "gpt_bigcode_mqa",
    "gpt_bigcode_mha",
    "opt",
    "bert",
    "distilbert",
    "albert",
    "modernbert",
    "vit",
    "t5",
    "bart",
]


def _names(m):
    return [name for name, _ in m.named_parameters()]


def _output_inputs(family, m, module):
    """What the output projection reads when the model runs, [..., heads * size]."""
    seen = []
    hook = m.get_submodule(module).register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    with torch.no_grad():
        m(**inputs(family))
    hook.remove()
    return seen[0].detach().reshape(-1, seen[0].shape[-1]).clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_moves_the_inputs_of_its_own_output_columns_and_no_others(family):
    # Would catch: a fused projection split by the wrong layout, Conv1D split along the wrong
    # dimension, key-value heads given to the wrong queries, a head size from hidden / heads.
    # The oracle is the model itself: whatever q, k, v rows of a head do, they do it through
    # the columns of the output projection that read this head.
    m = copy.deepcopy(model(family))
    found = heads(m, _names(m))
    for attention in {h.attention for h in found}:
        _check(family, m, [h for h in found if h.attention == attention])


def _check(family, m, mine):
    outputs = {h.head: h.parts[0] for h in mine if h.role == "o"}
    projection = next(iter(outputs.values())).tensor.removesuffix(".weight")
    before = _output_inputs(family, m, projection)
    parameters = dict(m.named_parameters())
    assert {h.role for h in mine} == {"q", "k", "v", "o"}
    for part in outputs.values():
        _check_output(m.get_submodule(projection), parameters[part.tensor], part, before)
    for head in (h for h in mine if h.role != "o"):
        kept = {p.tensor: parameters[p.tensor].detach().clone() for p in head.parts}
        with torch.no_grad():
            for part in head.parts:
                view = part.of(parameters[part.tensor])
                view += torch.linspace(1, 2, view.numel()).reshape(view.shape)
        after = _output_inputs(family, m, projection)
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)
        moved = {
            q for q, o in outputs.items() if not torch.equal(_read(o, before), _read(o, after))
        }
        assert moved == set(range(head.head * head.queries, (head.head + 1) * head.queries))


def _check_output(module, weight, part, seen):
    """Without its slice of the output projection, what the head sends no longer matters."""
    silent = seen.clone()
    _read(part, silent).zero_()
    kept = weight.detach().clone()
    with torch.no_grad():
        assert not torch.allclose(module(seen), module(silent))
        part.of(weight).zero_()
        torch.testing.assert_close(module(seen), module(silent))
        weight.copy_(kept)


def _read(part, values):
    return values.narrow(1, part.start, part.length)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_split_each_projection_without_gap_or_overlap(family):
    # Would catch: rows counted twice or forgotten (the last head, the bias, the second layer).
    m = model(family)
    parameters = dict(m.named_parameters())
    hits = {name: torch.zeros(p.shape) for name, p in parameters.items()}
    found = heads(m, parameters)
    for head in found:
        for part in head.parts:
            part.of(hits[part.tensor]).add_(1)
    touched = {name for name, hit in hits.items() if hit.any()}
    assert all((hits[name] == 1).all() for name in touched)
    biases = {n for n in parameters if n.removesuffix("bias") + "weight" in touched} - touched
    outputs = {p.tensor for h in found if h.role == "o" for p in h.parts}
    assert biases <= {n.removesuffix("weight") + "bias" for n in outputs}
    layers = {h.layer for h in found}
    assert layers == ({0} if family == "albert" else {0, 1})


def test_only_requested_parameters_are_split():
    # Would catch: slices of tensors that the Fisher does not have.
    m = model("llama")
    wanted = [n for n in _names(m) if "layers.1" in n and "q_proj" in n]
    found = heads(m, wanted)
    assert {p.tensor for h in found for p in h.parts} == set(wanted)
    assert [h.head for h in found] == [0, 1, 2, 3]


def test_what_is_missing_is_named():
    # Would catch: a guess, or a bare KeyError, where the heads can't be known.
    with pytest.raises(ParameterError, match=r"model\.config"):
        heads(nn.Linear(2, 2), ["weight"])
    with pytest.raises(ParameterError, match="no attention projection"):
        heads(model("mamba"), _names(model("mamba")))

    unknown = copy.deepcopy(model("gpt_neox"))
    for module in unknown.modules():
        if hasattr(module, "config"):
            module.config.model_type = "novel"
    with pytest.raises(ParameterError, match="query_key_value.*lays out.*novel"):
        heads(unknown, _names(unknown))

    misfit = copy.deepcopy(model("llama"))
    for module in misfit.modules():
        if hasattr(module, "config"):
            module.config.num_key_value_heads = 4
    with pytest.raises(ParameterError, match=r"k_proj.*\(8, 16\).*4 key-value heads"):
        heads(misfit, _names(misfit))

    headless = copy.deepcopy(model("llama"))
    attention = headless.model.layers[0].self_attn
    attention.novel_output = attention.o_proj
    del attention.o_proj
    with pytest.raises(ParameterError, match=r"output projection of 'model\.layers\.0"):
        heads(headless, _names(headless))
