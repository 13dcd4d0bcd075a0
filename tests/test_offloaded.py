"""Models whose weights accelerate keeps elsewhere give what they give at home."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine.away import held
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.engine.live import LiveBytes
from fisherscope.errors import ParameterError
from oracles import models
from oracles.rows import examples as row_examples
from oracles.rows import text
from oracles.runs import estimate, same

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

MC = {"structure": "kfac", "fisher_type": "mc"}
PLACES = {
    "gpt2": {"transformer.wte": "cpu", "transformer.wpe": "disk", "transformer.h.0": "disk"}
    | {"transformer.drop": "cpu", "transformer.h.1": "cpu", "transformer.ln_f": "disk"},
    "llama-untied": {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.norm": "disk"}
    | {"model.layers.1": "disk", "model.rotary_emb": "cpu"},
}


def offload(model: nn.Module, how: str, folder: Any, name: str = "") -> nn.Module:
    if how == "cpu":
        return accelerate.cpu_offload(model, "cpu")
    if how == "disk":
        return accelerate.disk_offload(model, str(folder), "cpu")
    places = {**PLACES[name], "lm_head": "cpu"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "parameters": [(n, id(p), p.device, p.requires_grad) for n, p in model.named_parameters()],
        "own": [sorted(vars(m)) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "forward": [id(vars(m).get("forward")) for m in model.modules()],
        "inner": [str(vars(m).get("_old_forward")) for m in model.modules()],
    }


# Would catch: sums on no device; ties that the hooks have cut (twice in every pass, and again in
# the second estimate); a head whose unsupervised rows count; a fingerprint of nothing.
@pytest.mark.parametrize("how", ["cpu", "disk", "dispatch"])
@pytest.mark.parametrize("name", list(PLACES))
def test_offloaded_makes_what_plain_makes(tmp_path, name, how):
    case = models.case(name)
    whole = estimate(case, case.rows, **MC)
    away = models.fresh(name)
    offload(away.model, how, tmp_path, name)
    assert any(p.device.type == "meta" for p in away.model.parameters())
    assert model_fingerprint(away.model) == whole.identity.model_fingerprint
    before = state_of(away.model)
    for _ in range(2):
        same(estimate(away, away.rows, **MC), whole, rtol=1e-6)
        assert state_of(away.model) == before


class Scaled(nn.Module):
    """A module of no known family, whose weight is one of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ijk,bk->bj", x, self.weight, x[:, :2])


# Would catch: gradients of copies that the hooks throw away, on the slow path and in the
# reference that rules are compared with.
@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_the_slow_path(tmp_path, how):
    torch.manual_seed(0)
    model, data = Scaled(), (torch.randn(5, 4), torch.randint(3, (5,)))
    whole = fs.estimate(model, data, progress=False)
    found = fs.estimate(offload(model, how, tmp_path), data, progress=False)
    assert "autograd" in found.coverage["weight"]
    same(found, whole, rtol=1e-6)


# Planted: weights that lie in memory anyway counted when a layer has fetched them.
def test_what_lies_in_memory_is_known(tmp_path):
    model = offload(nn.Linear(500, 10), "cpu", tmp_path)
    with LiveBytes(held(model)) as live:
        model(torch.ones(1, 500))
    assert live.peak < 500 * 10 * 4


# Would catch: a plan that is refused, or of the weights at rest, which are nothing.
@pytest.mark.parametrize("how", ["cpu", "disk", "dispatch"])
@pytest.mark.parametrize("options", [{"batch_size": 4}, MC], ids=str)
def test_a_plan_of_what_will_be_alive(tmp_path, how, options):
    away = models.fresh("llama-untied")
    offload(away.model, how, tmp_path, "llama-untied")
    data = row_examples(text([12] * 16))
    plan = fs.plan(away.model, data, **options)
    with LiveBytes(held(away.model)) as live:
        fisher = fs.estimate(away.model, data, progress=False, **options)
    assert plan.rules == fisher.coverage
    assert plan.memory_bytes == pytest.approx(live.peak, rel=0.2)


# Would catch: recomputed layers without the displacement of their weights.
def test_checkpointed(tmp_path):
    case = models.case("gpt2")
    whole = estimate(case, case.rows, **MC)
    away = models.fresh("gpt2")
    away.model.gradient_checkpointing_enable({"use_reentrant": False})
    offload(away.model, "disk", tmp_path)
    same(estimate(away, away.rows, **MC), whole, rtol=1e-6)


# Would catch: the two halves of a tie squared by themselves; zeros taken for weights.
def test_what_cannot_be_done_is_refused(tmp_path):
    case = models.fresh("gpt2")
    del case.model.lm_head.weight
    case.model.lm_head.weight = nn.Parameter(case.model.transformer.wte.weight.detach().clone())
    accelerate.disk_offload(case.model.transformer.wte, str(tmp_path / "wte"), "cpu")
    with pytest.raises(ParameterError, match="only one of them is offloaded"):
        estimate(case, case.rows)
    with torch.device("meta"):
        nothing = nn.Linear(4, 3)
    with pytest.raises(ParameterError, match="load the weights"):
        fs.estimate(nothing, (torch.randn(4, 4), torch.randint(3, (4,))), progress=False)
