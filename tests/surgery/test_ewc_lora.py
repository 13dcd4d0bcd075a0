"""The penalty on merged adapters against autograd through the product."""

from __future__ import annotations

import copy

import pytest
import torch

import fisherscope as fs
from oracles import models, rows

peft = pytest.importorskip("peft")

CASES = {
    "llama-untied": {"target_modules": ["q_proj", "down_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
}


def adapted(name: str, structure: str = "diagonal", **options):
    case = models.fresh(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), structure=structure, progress=False)
    return wrapped(case.model, **{**CASES[name], **options}), fisher


def wrapped(model, **options):
    config = peft.LoraConfig(r=3, lora_alpha=5, **options)
    return peft.get_peft_model(model, config)


def stirred(model) -> None:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.copy_(0.1 * torch.randn(p.shape, generator=g))


def truth(model, fisher):
    """Autograd through ½ δᵀFδ with δ written out from the adapters."""
    delta = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            product = layer.scaling["default"] * (b @ a)
            name = path.removeprefix("base_model.model.") + ".weight"
            delta[name] = product.T if layer.fan_in_fan_out else product
    product = fisher.matvec({n: d.detach() for n, d in delta.items()})
    scale = fisher.n_units / fisher.n_tokens
    # F d is constant to autograd here, so <F d, delta> has the gradient of the half square.
    linear = sum((product[n].float() * scale * d).sum() for n, d in delta.items())
    linear.backward()
    value = 0.5 * linear.item()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return value, grads


# Catches: a penalty on A and B themselves, the scaling forgotten or squared, a Conv1D product
# that is not transposed, the gradient of A in B's place.
@pytest.mark.parametrize("structure", ["diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_merged_displacement(name, structure) -> None:
    model, fisher = adapted(name, structure)
    ewc = fs.EWC(model, fisher, strength=1.0)
    assert ewc.penalty() == 0
    stirred(model)
    value, expected = truth(model, fisher)
    assert ewc.add_gradient() == pytest.approx(value, rel=1e-4) and value > 0
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and all("lora_" in n for n in found)
    for n, g in found.items():
        torch.testing.assert_close(g, expected[n], rtol=1e-4, atol=1e-7)


# Catches: a displacement that is not what merging the adapter does to the weights.
@pytest.mark.parametrize("name", CASES)
def test_penalty_is_that_of_the_merged_model(name) -> None:
    model, fisher = adapted(name)
    before = models.fresh(name).model
    ewc = fs.EWC(model, fisher, strength=2.0)
    stirred(model)
    found = ewc.penalty()
    merged = copy.deepcopy(model).merge_and_unload()
    whole = fs.EWC(merged, fisher, strength=2.0, anchor=before)
    assert whole.penalty() == pytest.approx(found, rel=1e-3)


# Catches: anchors, or Fishers of weights that can't move, kept in memory for nothing.
def test_only_what_can_move_is_kept() -> None:
    model, fisher = adapted("llama-untied")
    ewc = fs.EWC(model, fisher, strength=1.0)
    held = sum(m.base_layer.weight.nbytes for m in model.modules() if hasattr(m, "lora_A"))
    assert ewc.nbytes == {"model": held}


# Catches: biases that are trained beside the adapters and not penalised.
def test_biases_that_are_trained_are_penalised() -> None:
    model, fisher = adapted("gpt2", bias="lora_only")
    ewc = fs.EWC(model, fisher, strength=1.0)
    with torch.no_grad():
        bias = model.get_submodule("base_model.model.transformer.h.0.attn.c_attn").base_layer.bias
        bias.add_(1.0)
    held = fisher.diagonal("token")["transformer.h.0.attn.c_attn.bias"].sum()
    assert ewc.penalty() == pytest.approx(0.5 * float(held), rel=1e-5)


# Catches: the adapters' own Fisher taken for that of the model below.
def test_fisher_of_the_adapters_themselves() -> None:
    case = models.fresh("llama-untied")
    model = wrapped(case.model, **CASES["llama-untied"])
    stirred(model)
    fisher = fs.estimate(model, rows.examples(case.rows), parameters="*lora_*", progress=False)
    ewc = fs.EWC(model, fisher, strength=1.0)
    assert ewc.penalty() == 0
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_A" in n:
                p.add_(1.0)
    held = sum(t.sum() for n, t in fisher.diagonal("token").items() if "lora_A" in n)
    assert ewc.penalty() == pytest.approx(0.5 * float(held), rel=1e-4)


# Catches: adapters that move the weights in another way than by a product, penalised wrongly.
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama-untied", {"use_dora": True}, "variant"),
        ("llama-untied", {"target_modules": ["embed_tokens"]}, "another layer"),
        ("llama-untied", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ("gpt2", {"lora_bias": True}, "bias"),
    ],
)
def test_other_adapters_are_refused_by_name(name, options, said) -> None:
    model, fisher = adapted(name, **options)
    with pytest.raises(fs.ParameterError, match=said):
        fs.EWC(model, fisher, strength=1.0)


# Catches: a tied weight of which the adapter moves one use only, under its other name.
def test_adapter_on_a_tied_weight_is_refused() -> None:
    case = models.fresh("llama-tied")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    model = wrapped(case.model, target_modules=["lm_head", "q_proj"])
    with pytest.raises(fs.ParameterError, match="tied weight"):
        fs.EWC(model, fisher, strength=1.0)


# Catches: a Fisher of another base model.
def test_fisher_of_another_base_is_refused() -> None:
    model, _ = adapted("llama-untied")
    other = models.fresh("llama-untied")
    with torch.no_grad():
        next(other.model.parameters()).add_(1e-3)
    fisher = fs.estimate(other.model, rows.examples(other.rows), progress=False)
    with pytest.raises(fs.IdentityError, match="other weights"):
        fs.EWC(model, fisher, strength=1.0)
