"""Models that are split over ranks give what they give whole, and come back split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

import fisherscope as fs
from oracles import models
from oracles.comparison import KINDS, close, plain, traces
from oracles.processes import ranks, split, values
from oracles.runs import estimate, poisoned

_BLOCKS = {"gpt2": "transformer.h", "llama-untied": "model.layers"}


def state_of(model: nn.Module) -> dict[str, Any]:
    """What an estimate has to leave alone."""
    return {
        "parameters": {n: (id(p), type(p), p.requires_grad) for n, p in model.named_parameters()},
        "gradients": {n: id(p.grad) for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
            for m in model.modules()
        ],
        "values": [p.to_local().clone() for p in model.parameters()],
    }


def untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(after.pop("values"), before["values"], strict=True)
    )
    assert after == {key: value for key, value in before.items() if key != "values"}


GROUPS = {
    "squares": ["diagonal", "grouped mc", "halves, by parts"],
    "factors": ["kfac", "ekfac mc"],
}


def some_kinds(rank: int, name: str, group: str) -> dict[str, Any]:
    del rank
    case = models.fresh(name)
    split(case.model, case.model.get_submodule(_BLOCKS[name]))
    case.model.train()
    next(iter(case.model.parameters())).requires_grad_(False)
    before = state_of(case.model)
    found = {}
    for kind in GROUPS[group]:
        options = {**KINDS[kind], "batch_size": 2}
        found[kind] = plain(estimate(case, case.rows, **options))
        if kind.startswith("ekfac"):
            basis = estimate(case, case.rows, **{**options, "structure": "kfac"})
            whole = models.fresh(name)
            one = estimate(whole, case.rows, basis=basis, distributed=False, **options)
            found[f"{kind} in their basis"] = plain(one)
    untouched(case.model, before)
    return found


# Would catch: a fingerprint, names or shapes of a shard; a root that stays gathered, whose
# parameters are then unknown ones; gradients reduced over ranks before they are squared.
@pytest.mark.parametrize("group", list(GROUPS))
@pytest.mark.parametrize("name", list(_BLOCKS))
def test_sharded_makes_what_whole_makes(name, group):
    case = models.case(name)
    found = values(ranks(2, some_kinds, name, group))
    for kind in GROUPS[group]:
        whole = plain(estimate(case, case.rows, batch_size=2, **KINDS[kind]))
        for mine in found:
            close(mine[kind], mine.get(f"{kind} in their basis", whole), kind)
            assert traces(mine[kind]) == pytest.approx(traces(whole), rel=1e-6)


# Planted: a process that is alone asked for the groups that it shares with others.
def test_one_process_that_is_all_ranks():
    case = models.case("gpt2")
    (mine,) = values(ranks(1, some_kinds, "gpt2", "squares"))
    for kind in GROUPS["squares"]:
        close(mine[kind], plain(estimate(case, case.rows, batch_size=2, **KINDS[kind])), kind)


class Odd(nn.Module):
    """Uses a weight behind its module's back, and blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x) + x @ self.layer.weight))


def odd() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd(), (torch.randn(5, 4), torch.randint(3, (5,)))


TOKENS = {"unit": "token", "batch_size": 1}
RAGGED: dict[str, dict[str, Any]] = {
    "one example": {"max_examples": 1},
    "three batches": {"max_examples": 3, "batch_size": 1, "structure": "kfac"},
    "tokens": TOKENS,
    "checkpointed": {"batch_size": 2, **KINDS["diagonal mc"]},
    "skipped": {"on_nonfinite": "skip", "batch_size": 2},
}


def ragged(rank: int) -> dict[str, Any]:
    del rank
    case = models.fresh("gpt2")
    split(case.model, case.model.transformer.h)
    found = {}
    for kind, options in RAGGED.items():
        if kind == "checkpointed":
            case.model.gradient_checkpointing_enable({"use_reentrant": False})
        if kind == "skipped":
            case = models.fresh("mlp")
            split(case.model)
        data = poisoned(case, {"row-3"}) if kind == "skipped" else case.rows
        found[kind] = plain(estimate(case, data, **options))
    model, data = odd()
    split(model)
    for kind in ("diagonal", "diagonal mc"):
        slow = fs.estimate(model, data, progress=False, batch_size=2, **KINDS[kind])
        assert "autograd" in slow.coverage["layer.weight"]
        found[f"slow, {kind}"] = plain(slow)
    return found


# Would catch: ranks that take different numbers of passes, which hang (no example for one, more
# tokens on one, examples on the slow path, one that is tried again alone); passes of a rank
# without examples that count; recomputed layers without their weights.
def test_ranks_that_need_different_numbers_of_passes():
    found = values(ranks(2, ragged))
    case = models.case("gpt2")
    expected = {}
    for kind, options in RAGGED.items():
        if kind == "skipped":
            mlp = models.case("mlp")
            expected[kind] = plain(estimate(mlp, poisoned(mlp, {"row-3"}), **options))
        else:
            expected[kind] = plain(estimate(case, case.rows, **options))
    model, data = odd()
    for kind in ("diagonal", "diagonal mc"):
        slow = fs.estimate(model, data, progress=False, batch_size=2, **KINDS[kind])
        expected[f"slow, {kind}"] = plain(slow)
    for mine in found:
        assert set(mine) == set(expected)
        for kind, whole in expected.items():
            close(mine[kind], whole, kind)


def failing(rank: int, how: str) -> Any:
    case = models.fresh("mlp")
    model: nn.Module = case.model
    options: dict[str, Any] = {"batch_size": 1}
    data = poisoned(case, {"row-3"}) if how == "poison" else case.rows
    if how == "other data" and rank == 1:
        data = data[:-1]
    if how == "apart":
        options["distributed"] = False
    split(model)
    if how == "raises" and rank == 1:
        calls = 0

        def hook(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                raise ZeroDivisionError("on rank 1")

        next(model.children()).register_forward_hook(hook)
    if how == "damage":
        delta = {n: torch.zeros(p.shape) for n, p in model.named_parameters()}
        return fs.damage(model, _batch(case), delta)
    return plain(estimate(case, data, **options))


def _batch(case: models.Case) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = ([r.inputs["0"] for r in case.rows], [r.labels for r in case.rows])
    return torch.stack(inputs), torch.stack(labels)


# Would catch: a rank that waits within a pass, or for news, of another that has failed.
@pytest.mark.parametrize(
    ("how", "errors", "said"),
    [
        ("poison", ("NonFiniteError",) * 2, "'row-3' is not finite"),
        ("other data", ("IdentityError",) * 2, "data_fingerprint"),
        ("raises", ("ZeroDivisionError",) * 2, "on rank 1"),
        ("apart", ("ParameterError",) * 2, "distributed=True"),
        ("damage", ("ParameterError",) * 2, "use the model whole"),
    ],
)
def test_what_ends_one_ends_all(how, errors, said):
    outcomes = ranks(2, failing, how)
    for error, (kind, what) in zip(errors, outcomes, strict=True):
        assert (kind, what[0]) == ("raised", error), what
        assert said in what[1]
