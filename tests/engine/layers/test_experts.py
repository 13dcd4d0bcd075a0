"""Stacks of experts: every family of them, however its tokens fall into batches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine.expert_scores import ExpertScore
from fisherscope.engine.layers import experts, rule_for
from oracles import brute, models, rows
from oracles.checks import check, check_ledger, compare, slow

SIZE = {
    "vocab_size": models.VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
    "max_position_embeddings": 32,
}


def olmoe() -> nn.Module:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2))


def granite() -> nn.Module:
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    return GraniteMoeForCausalLM(
        GraniteMoeConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2)
    )


def deepseek() -> nn.Module:
    # Shared experts, groups of experts, a router in fp32.
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SIZE,
            moe_intermediate_size=12,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
            first_k_dense_replace=0,
            q_lora_rank=None,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    )


def many() -> nn.Module:
    """More experts than there are tokens in an example."""
    return models.mixtral(**SIZE, num_local_experts=24, num_experts_per_tok=2)


def single() -> nn.Module:
    # With one choice Mixtral's routing weight is 1, whatever its router says.
    return models.mixtral(**SIZE, num_local_experts=3, num_experts_per_tok=1)


FAMILIES = {
    "olmoe": olmoe,
    "granite": granite,
    "deepseek": deepseek,
    "many": many,
    "single": single,
}


@cache
def built(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(sum(map(ord, name)))
    model = models.randomise(FAMILIES[name]())
    return model, brute.diagonal(brute.double(model), rows.text(), "causal-lm")[0]


def vanishes(name: str):
    return lambda parameter: name == "single" and parameter.endswith("mlp.gate.weight")


# Would catch: rows booked on the wrong example or expert, the two choices of a token mixed up,
# weights of the routing left out of the gradient, a family whose class stores its experts in
# another way, an expert that no token chose, padding that is routed like text.
@pytest.mark.parametrize("layout", ["unpadded", "left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_against_brute_force(name, layout):
    model, expected = built(name)
    data = rows.LAYOUTS[layout](rows.text())
    fisher = fs.estimate(model, data, batch_size=3, progress=False)
    compare(fisher.sums, expected, vanishes(name))
    assert not slow(fisher)
    if name == "many":
        stack = expected["model.layers.0.mlp.experts.down_proj"]
        assert not stack.flatten(1).any(1).all()


# Would catch: a way to compute the experts for which rows are attributed by other means.
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_implementation_of_transformers(implementation):
    model, expected = built("olmoe")
    before = model.config._experts_implementation
    model.set_experts_implementation(implementation)
    try:
        fisher = fs.estimate(model, rows.examples(rows.text()), batch_size=2, progress=False)
    finally:
        model.set_experts_implementation(before)
    compare(fisher.sums, expected)
    assert not slow(fisher)


# Would catch: sums that depend on who shares a batch with whom.
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_batch_size(name, size):
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), batch_size=size, progress=False)
    check(fisher, name)
    check_ledger(fisher, name)


# Would catch: the recomputed forward pass counted as another use of the stack, or run by the
# module's own code without a probe.
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    case = models.fresh("mixtral")
    case.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    case.model.train()
    fisher = fs.estimate(case.model, rows.examples(case.rows), batch_size=3, progress=False)
    check(fisher, "mixtral")


# Would catch: a forward pass left replaced, also after a failure in the middle of one.
def test_the_module_gets_its_own_forward_pass_back():
    case = models.fresh("mixtral")
    stacks = [m for m in case.model.modules() if hasattr(m, "has_gate")]
    fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert not any("forward" in vars(m) for m in stacks)
    handle = case.model.model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fs.estimate(case.model, rows.examples(case.rows), progress=False)
    handle.remove()
    assert not any("forward" in vars(m) for m in stacks)


# Would catch: a class that inherits the declarations but computes something else, believed; or
# one such stack that drags every other parameter of the model down the slow path.
@pytest.mark.parametrize("own", ["class", "instance"])
def test_a_stack_that_computes_something_else_is_slow_alone(own):
    case = models.fresh("mixtral")
    stack = case.model.model.layers[1].mlp.experts
    original = type(stack).forward

    def doubled(self, *args, **kwargs):
        return 2 * original(self, *args, **kwargs)

    if own == "class":
        stack.__class__ = type("Doubled", (type(stack),), {"forward": doubled})
    else:
        stack.forward = doubled.__get__(stack)
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    expected, _ = brute.diagonal(brute.double(case.model), case.rows, case.likelihood)
    compare(fisher.sums, expected)
    assert slow(fisher) == {n for n in fisher.sums if n.startswith("model.layers.1.mlp.experts.")}
    if own == "class":
        reasons = {fisher.coverage[n] for n in slow(fisher)}
        assert all("something else than transformers' experts" in reason for reason in reasons)


# Would catch: verification that would let a wrong attribution of rows pass.
def test_rows_attributed_to_the_wrong_example_are_noticed(monkeypatch):
    class Shifted(ExpertScore):
        def __init__(self, g, a, expert, example, batch, transposed=False):
            example = (example + 1) % batch
            order = torch.argsort(expert * batch + example, stable=True)
            a = None if a is None else a[order].clone()
            super().__init__(g, a, expert[order], example[order], batch, transposed)

    monkeypatch.setattr(experts, "ExpertScore", Shifted)
    case = models.case("mixtral")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    check(fisher, "mixtral", covered=False)
    assert slow(fisher) == {n for n in fisher.sums if ".mlp.experts." in n}


# Would catch: a buffer for all experts, or for all examples, of the size of a matrix each.
def test_no_more_than_one_expert_is_formed_at_once():
    torch.manual_seed(0)
    batch, per, stack, out, wide = 8, 16, 6, 40, 50
    expert = torch.arange(stack).repeat_interleave(batch * per)
    example = torch.arange(batch).repeat_interleave(per).repeat(stack)
    g, a = torch.randn(len(expert), out), torch.randn(len(expert), wide)
    score = ExpertScore(g, a, expert, example, batch)
    total = torch.zeros(stack, out, wide)
    with torch.profiler.profile(profile_memory=True) as trace:
        score.squares(total)
    largest = max(event.cpu_memory_usage for event in trace.events())
    rows_of_one = 4 * batch * per * max(out, wide)
    assert largest <= max(4 * out * wide, 2 * rows_of_one) < 4 * batch * out * wide


# Would catch: modules that merely look like a stack of experts.
def test_only_declared_stacks_match():
    stack = models.case("mixtral").model.model.layers[0].mlp.experts
    assert set(rule_for(stack).parameters) == {"gate_up_proj", "down_proj"}
    other = nn.Module()
    other.gate_up_proj = nn.Parameter(torch.zeros(2, 3, 4))
    other.num_experts = 2
    assert rule_for(other) is None
