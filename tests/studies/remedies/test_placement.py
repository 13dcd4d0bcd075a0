"""Adapters: where they may go, what they change, and what stays bitwise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.likelihoods import CausalLM
from fisherscope.studies.course import follow
from fisherscope.studies.remedies.placement import adapted, count_of, places, random_like
from fisherscope.studies.tuning import Schedule
from oracles import models, nets, rows

pytest.importorskip("peft")


def test_tied_and_output_layers_get_no_adapter():
    # Catches an adapter on one use of a tied weight, and one on the vocabulary.
    tied = places(models.fresh("gpt2").model)
    assert {p.module.split(".")[-1] for p in tied} == {"c_attn", "c_proj", "c_fc"}
    assert len(tied) == 8
    untied = places(models.fresh("llama-untied").model)
    assert len(untied) == 14 and not any("lm_head" in p.module for p in untied)
    assert places(nets.Reused()) == []
    frozen = models.fresh("gpt2").model.requires_grad_(False)
    assert places(frozen) == []


def test_the_projection_of_a_fused_attention_gets_none():
    # Catches an adapter on a layer that is never called.
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "after": nn.Linear(4, 4)})
    assert [p.module for p in places(model)] == ["after"]


def test_random_layers_are_as_many_and_as_large():
    # Catches a null with more parameters, and one choice for all seeds.
    found = places(models.fresh("llama-untied").model)
    sizes = {p.module: p.size for p in found}
    chosen = [p.module for p in found if p.module.endswith(("q_proj", "down_proj"))]
    picks = [random_like(chosen, found, seed) for seed in range(5)]
    for pick in picks:
        assert len(set(pick)) == len(chosen) and set(pick) != set(chosen)
        assert sum(sizes[m] for m in pick) == sum(sizes[m] for m in chosen)
    assert len({tuple(pick) for pick in picks}) > 1
    assert picks[0] == random_like(chosen, found, 0)


def test_how_many_layers():
    assert [count_of(s, 8) for s in (0.01, 0.25, 0.99)] == [1, 2, 7]


def test_a_layer_is_named_as_a_whole():
    # Catches targets that match by their ending, as layer 0 does within layer 1.
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    found = adapted(model, ["0"], rank=1, seed=0)
    assert hasattr(found[0], "lora_A") and not hasattr(found[1][0], "lora_A")


@pytest.mark.parametrize("name", ["llama-untied", "gpt2"])
def test_only_the_chosen_layers_change(name):
    # Catches biases or norms that train along, an adapter that starts as a change or with other
    # values each time, a Conv1D taken for a Linear, and a user's model that gets adapters.
    case = models.fresh(name)
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    found = places(case.model)
    chosen = [found[0].module, found[-1].module]
    state = torch.get_rng_state()
    model = adapted(case.model, chosen, rank=2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    again = adapted(case.model, chosen, rank=2, seed=0)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not any("lora" in n for n, _ in case.model.named_parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * (found[0].size + found[-1].size)
    examples = fs.examples(rows.examples(case.rows))
    merged = {}

    def at(copied: nn.Module, step: int) -> None:
        whole = copy.deepcopy(copied)
        for module in whole.modules():
            if hasattr(module, "lora_A"):
                module.merge()
        merged[step] = {
            n.replace(".base_layer", ""): p.detach()
            for n, p in whole.named_parameters()
            if "lora_" not in n
        }

    follow(
        model, examples, {"task": examples}, Schedule(steps=2, peak=0.1), likelihood=CausalLM(),
        batch_rows=4, seed=0, every=2, on_point=at,
    )  # fmt: skip
    weights = {f"{module}.weight" for module in chosen}
    assert merged[0].keys() == before.keys()
    for n, p in before.items():
        assert torch.equal(merged[0][n], p)
        assert torch.equal(merged[2][n], p) == (n not in weights), n
