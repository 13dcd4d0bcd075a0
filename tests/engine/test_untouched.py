"""The model comes back bit by bit as it was, also when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.analysis.damage import damage
from oracles import models, nets, rows

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
NAMES = ("gpt2", "opt", "bert-mlm", "resnet", "lora", "functional", "running-norm")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that can be compared, the tensors as copies."""
    found: dict[str, Any] = {"rng": torch.get_rng_state().clone()}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    for name, tensor in tensors:
        gradient = tensor.grad
        found[name] = (
            id(tensor),
            tensor.data_ptr(),
            tensor.requires_grad,
            None if gradient is None else (id(gradient), gradient.clone()),
            tensor.detach().clone(),
        )
    for path, module in model.named_modules():
        found[f"{path}()"] = {
            name: dict(value) if name in HOOKS else value
            for name, value in vars(module).items()
            if not name.startswith("_") or name in HOOKS
        }
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    before = state(model)
    yield
    after = state(model)
    assert list(before) == list(after)
    for name, value in before.items():
        assert same(value, after[name]), f"{name} changed"


def own(name: str) -> models.Case:
    """A model in the middle of somebody's training: modes, gradients, hooks and flags mixed."""
    case = models.fresh(name)
    model = case.model.train()
    modules = list(model.modules())
    modules[len(modules) // 2].eval()
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if number % 2 else None
    modules[-1].register_forward_hook(lambda *_: None)
    modules[1].register_forward_pre_hook(lambda *_: None)
    torch.manual_seed(11)
    torch.rand(3)
    return case


def product(case: models.Case, curvature: Any) -> object:
    op = fs.operator(case.model, rows.examples(case.rows), curvature=curvature)
    return op.matvec({n: torch.full_like(p, 0.01) for n, p in case.model.named_parameters()})


Act = Callable[[models.Case], object]
ACTS: dict[str, Act] = {
    "estimate": lambda c: fs.estimate(c.model, rows.examples(c.rows), progress=False),
    "mc": lambda c: fs.estimate(
        c.model, rows.examples(c.rows), fisher_type="mc", draws=2, progress=False
    ),
    "token": lambda c: fs.estimate(
        c.model, rows.examples(c.rows), unit="token", structure="grouped", progress=False
    ),
    "plan": lambda c: fs.plan(c.model, rows.examples(c.rows)),
    "product": lambda c: product(c, "fisher"),
    "ggn": lambda c: product(c, "ggn"),
    "hessian": lambda c: product(c, "hessian"),
    "damage": lambda c: damage(
        c.model,
        rows.examples(c.rows),
        {n: torch.full_like(p, 0.01) for n, p in c.model.named_parameters()},
    ),
}


# Would catch: training statistics of a norm updated by looking at it, dropout that draws from
# the global generator, a frozen parameter left frozen, .grad overwritten or filled, a hook or
# a replaced forward left behind, weights restored by subtraction.
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes(name, act):
    case = own(name)
    with untouched(case.model):
        ACTS[act](case)


# Would catch: a model that uses random numbers (noise, skipped layers) moving the generator on.
@pytest.mark.parametrize("act", ["estimate", "mc", "plan", "damage"])
def test_the_random_state_is_given_back(act):
    case = models.fresh("mlp")

    def consume(*_: object) -> None:
        torch.rand(3)

    case.model.first.register_forward_hook(consume)
    with untouched(case.model):
        ACTS[act](case)


class Stop(Exception):
    """Not one of the library's."""


def stop_after(model: nn.Module, path: str, calls: int) -> None:
    """Let a module raise at its n-th call from now on."""
    count = [0]

    def hook(*_: object) -> None:
        count[0] += 1
        if count[0] > calls:
            raise Stop

    model.get_submodule(path).register_forward_hook(hook)


# Would catch: clean-up that is not in a finally clause: hooks, the head's forward, the
# context of a tapped embedding, freezing. The call number decides where it strikes: in the
# verification, in a trial, in a later batch, during a measurement.
@pytest.mark.parametrize("calls", [0, 1, 3, 6])
@pytest.mark.parametrize("act", ["estimate", "plan", "damage"])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt2", "transformer.h.1.mlp"),
        ("opt", "model.decoder.embed_positions"),
        ("layerscale", "blocks.1.linear"),
    ],
)
def test_nothing_changes_when_the_model_raises(name, path, act, calls):
    case = own(name)
    stop_after(case.model, path, calls)
    acts = ACTS | {
        "estimate": lambda c: fs.estimate(
            c.model, rows.examples(c.rows), batch_size=1, progress=False
        )
    }
    with untouched(case.model), pytest.raises(Stop):
        for _ in range(4):
            acts[act](case)


# Would catch: an exception thrown out of a callback inside of the backward pass.
def test_nothing_changes_when_the_backward_pass_is_interrupted():
    case = own("gpt2")
    strikes = [0]

    def strike(gradient: torch.Tensor) -> None:
        strikes[0] += 1
        if strikes[0] > 4:
            raise KeyboardInterrupt

    def attach(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(strike)

    case.model.transformer.h[0].mlp.register_forward_hook(attach)
    with untouched(case.model), pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            fs.estimate(case.model, rows.examples(case.rows), batch_size=1, progress=False)


# Would catch: a requirement that something must be trainable; an estimate that is only of
# what is.
def test_a_model_without_trainable_parameters():
    case = models.fresh("bert")
    reference = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    case.model.requires_grad_(False)
    with untouched(case.model):
        frozen = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert all(torch.equal(frozen.sums[n], reference.sums[n]) for n in reference.sums)


# Would catch: estimating in the caller's no_grad (nothing would be recorded).
def test_inside_no_grad():
    case = models.case("functional")
    data = rows.examples(case.rows)
    reference = fs.estimate(case.model, data, progress=False)
    with torch.no_grad():
        inside = fs.estimate(case.model, data, progress=False)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(inside.sums[n], reference.sums[n]) for n in reference.sums)


# Would catch: a module that keeps what it saw last, so that memory is held after the estimate.
def test_no_graph_stays_alive():
    model = models.randomise(nets.MLP(3))
    seen: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda m, args, out: seen.append(out))
    data = rows.examples(rows.points(4, (5,), classes=3))
    fs.estimate(model, data, progress=False)
    import weakref

    graphs = [weakref.ref(out) for out in seen]
    seen.clear()
    assert not any(ref() is not None for ref in graphs)
