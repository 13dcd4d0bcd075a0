"""Brute force: one example at a time, plain autograd, float64, nothing of the engine.

Everything is computed from what a user of the model sees: its logits, the usual
cross-entropy (next token, cloze or class) and the squared error.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import keyed_uniforms
from oracles import models
from oracles.rows import Row

Tensors = dict[str, Tensor]


def double(model: nn.Module) -> nn.Module:
    """A float64 copy in eval mode in which every parameter is trainable."""
    twin = copy.deepcopy(model).double().eval()
    if any(hasattr(module, "has_gate") for module in twin.modules()):
        twin.set_experts_implementation("eager")  # the grouped kernel has no float64
    for p in twin.parameters():
        p.requires_grad_(True)
    return twin


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def outputs(model: nn.Module, row: Row) -> Tensor:
    """What the model says about one row: [positions, classes], [classes] or [values]."""
    dtype = next(model.parameters()).dtype
    inputs = {
        n: x[None].to(dtype) if x.is_floating_point() else x[None] for n, x in row.inputs.items()
    }
    positional = [inputs.pop(n) for n in sorted(n for n in inputs if n.isdecimal())]
    returned = model(*positional, **inputs)
    return (returned if isinstance(returned, Tensor) else returned.logits)[0]


def supervised(row: Row, likelihood: str) -> tuple[Tensor, Tensor]:
    """(index of the logits, label) of every supervised token."""
    if likelihood == "causal-lm":
        at = (row.labels[1:] != -100).nonzero().flatten()
        return at, row.labels[at + 1]
    if likelihood == "masked-lm":
        at = (row.labels != -100).nonzero().flatten()
        return at, row.labels[at]
    return torch.zeros(1, dtype=torch.long), row.labels[None]


def token_losses(model: nn.Module, row: Row, likelihood: str, labels: Tensor | None = None):
    """Negative log-probability of each token's own label, up to a constant."""
    out = outputs(model, row)
    at, own = supervised(row, likelihood)
    labels = own if labels is None else labels
    if likelihood == "regression":
        return 0.5 * (out.reshape(1, -1) - labels.to(out)).square().sum(1)
    logits = out[at] if likelihood.endswith("lm") else out[None]
    return F.cross_entropy(logits, labels, reduction="none")


def gradients(loss: Tensor, wanted: Sequence[Tensor], retain: bool = True) -> list[Tensor]:
    found = torch.autograd.grad(loss, wanted, retain_graph=retain, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def scores(
    model: nn.Module, row: Row, likelihood: str, unit: str, labels: Tensor | None = None
) -> Iterator[Tensors]:
    """The score of every unit of a row, up to its sign."""
    own = parameters(model)
    losses = token_losses(model, row, likelihood, labels)
    for loss in losses if unit == "token" else [losses.sum()]:
        yield dict(zip(own, gradients(loss, list(own.values())), strict=True))


def zeros(model: nn.Module) -> Tensors:
    return {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters(model).items()}


def diagonal(model: nn.Module, rows: Sequence[Row], likelihood: str, unit: str = "example"):
    """Sum of squared scores, and the squared norm of every example: {name: [rows]}."""
    total = zeros(model)
    norms = {name: torch.zeros(len(rows), dtype=torch.float64) for name in total}
    for n, row in enumerate(rows):
        for score in scores(model, row, likelihood, unit):
            for name, g in score.items():
                total[name] += g.double().square()
                norms[name][n] += g.double().square().sum()
    return total, norms


# -- labels that the model draws ----------------------------------------------------------


def drawn_labels(model: nn.Module, row: Row, likelihood: str, uniforms: Tensor) -> Tensor:
    """Inverse of the cumulative distribution at one number per token (or value)."""
    out = outputs(model, row).detach()
    if likelihood == "regression":
        return (out.reshape(-1) + torch.special.ndtri(uniforms))[None]
    at, _ = supervised(row, likelihood)
    logits = out[at] if likelihood.endswith("lm") else out[None]
    cumulative = logits.softmax(-1).cumsum(-1)
    return (cumulative < uniforms[:, None] * cumulative[:, -1:]).sum(-1)


def draw_labels(model: nn.Module, row: Row, likelihood: str, seed: int, draw: int) -> Tensor:
    """The labels of a row for a seed: keyed by the rank among its supervised tokens."""
    real = row.labels.is_floating_point()
    tokens = row.labels.numel() if real else len(supervised(row, likelihood)[0])
    u = keyed_uniforms(seed, [row.id], np.arange(tokens)[None], draw)[0]
    return drawn_labels(model, row, likelihood, torch.from_numpy(u))


def mc(model: nn.Module, rows: Sequence[Row], likelihood: str, seed: int, draws: int):
    """Squared scores of drawn labels: sums over draws, and norms {name: [rows, draws]}."""
    total = zeros(model)
    norms = {name: torch.zeros(len(rows), draws, dtype=torch.float64) for name in total}
    for n, row in enumerate(rows):
        for draw in range(draws):
            labels = draw_labels(model, row, likelihood, seed, draw)
            for score in scores(model, row, likelihood, "example", labels):
                for name, g in score.items():
                    total[name] += g.square()
                    norms[name][n, draw] += g.square().sum()
    return total, norms


def type2(model: nn.Module, rows: Sequence[Row], likelihood: str) -> Tensors:
    """Exact expectation over the model's labels, token by token, class by class."""
    own = parameters(model)
    total = zeros(model)
    for row in rows:
        out = outputs(model, row)
        at, _ = supervised(row, likelihood)
        tokens = out[at] if likelihood.endswith("lm") else out.reshape(1, -1)
        for token in tokens:
            if likelihood == "regression":
                terms = [(1.0, value) for value in token]
            else:
                logp = token.log_softmax(-1)
                terms = [(float(value.detach().exp()), value) for value in logp]
            for weight, value in terms:
                for name, g in zip(own, gradients(value, list(own.values())), strict=True):
                    total[name] += weight * g.double().square()
    return total


# -- positions ----------------------------------------------------------------------------


def positions(case: models.Case, model: nn.Module) -> Tensors:
    """Squares of every use of a parameter at every position, from plain forward hooks."""
    total = zeros(model)
    names = {id(p): n for n, p in parameters(model).items()}
    rowwise = {
        path: module
        for path, module in model.named_modules()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in case.rowwise)
    }
    for row in case.rows:
        for path, squares in _row_by_row(case, model, row, rowwise).items():
            total[path] += squares
        uses: list[tuple[nn.Module, Any, Tensor, list[Tensor]]] = []

        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any, uses=uses) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                arrived: list[Tensor] = []
                # A tensor hook, not retain_grad: an in-place operation may follow.
                output.register_hook(arrived.append)
                given = args[0] if args else next(iter(kwargs.values()))
                uses.append((module, given.detach().clone(), output.detach().clone(), arrived))

        handles = [
            module.register_forward_hook(watch, with_kwargs=True)
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
            and all(name == "parametrizations" for name, _ in module.named_children())
            and module not in rowwise.values()
        ]
        loss = token_losses(model, row, case.likelihood).sum()
        for handle in handles:
            handle.remove()
        own = parameters(model)
        for name, g in zip(own, gradients(loss, list(own.values())), strict=True):
            if case.is_whole(name):
                total[name] += g.square()
        for module, x, y, arrived in uses:
            if not arrived:
                continue
            for local, p in module.named_parameters(recurse=False):
                name = names[id(p)]
                if not case.is_whole(name):
                    total[name] += _squares_at_positions(module, local, p, x, y, arrived[0])
    return total


def _row_by_row(
    case: models.Case, model: nn.Module, row: Row, modules: dict[str, nn.Module]
) -> Tensors:
    """Squares of what every row of a flat batch adds, from running the module on it alone."""
    total: Tensors = {}
    for path, module in modules.items():
        seen: list[tuple[Any, Tensor, list[Tensor]]] = []

        def watch(_: nn.Module, args: Any, output: Any, seen=seen) -> None:
            # A router returns its logits, which nobody uses, and weights, indices.
            output = output if isinstance(output, Tensor) else output[1]
            arrived: list[Tensor] = []
            output.register_hook(arrived.append)
            seen.append(([x.detach() for x in args], output, arrived))

        handle = module.register_forward_hook(watch)
        token_losses(model, row, case.likelihood).sum().backward()
        handle.remove()
        model.zero_grad()
        ((args, _, arrived),) = seen
        own = dict(module.named_parameters(recurse=False))
        for at in range(len(args[0])):
            output = module(*(x[at : at + 1] for x in args))
            output = output if isinstance(output, Tensor) else output[1]
            found = torch.autograd.grad(output, list(own.values()), arrived[0][at : at + 1])
            for local, g in zip(own, found, strict=True):
                name = f"{path}.{local}"
                total[name] = total.get(name, 0) + g.square()
    return total


def _squares_at_positions(
    module: nn.Module, local: str, p: Tensor, x: Tensor, y: Tensor, g: Tensor
) -> Tensor:
    from transformers.pytorch_utils import Conv1D

    with torch.no_grad():
        if isinstance(module, (nn.Linear, Conv1D)) and local == "weight":
            squares = g.flatten(0, -2).square().T @ x.flatten(0, -2).square()
            return squares if isinstance(module, nn.Linear) else squares.T
        if isinstance(module, nn.Embedding):
            ids, scale = x.flatten(), 1.0
            if type(module) is not nn.Embedding:  # which row was looked up: compare them all
                flat = y.flatten(0, -2)
                ids = torch.cosine_similarity(flat[:, None], p, dim=-1).argmax(-1)
                scale = (flat * p[ids]).sum(-1, keepdim=True) / p[ids].square().sum(
                    -1, keepdim=True
                )
            squares = torch.zeros_like(p).index_add_(0, ids, (scale * g.flatten(0, -2)).square())
            if module.padding_idx is not None:
                squares[module.padding_idx] = 0
            return squares
        named = isinstance(getattr(module, "padding", None), str)
        if isinstance(module, nn.Conv2d) and local == "weight" and not named:
            return _convolution(module, x, g)
        if isinstance(module, nn.modules.conv._ConvNd) and local == "weight":
            return _any_convolution(module, p, x, g)
        # Affine in a vector: the response to adding one to every entry of it.
        change = _call(module, {local: p + 1}, x) - _call(module, {local: p}, x)
        squares = (g * change).square()
        if squares.shape[1:] == p.shape:
            return squares.sum(0)
        channels = isinstance(
            module,
            (
                nn.modules.conv._ConvNd,
                nn.modules.batchnorm._BatchNorm,
                nn.modules.instancenorm._InstanceNorm,
                nn.GroupNorm,
            ),
        )
        axis = 1 if channels else squares.ndim - 1
        return squares.transpose(axis, -1).reshape(-1, *p.shape).sum(0)


def _call(module: nn.Module, changed: Tensors, x: Tensor) -> Tensor:
    return torch.func.functional_call(module, changed, (x,))


def _convolution(conv: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Cut the patches out and pair each with its output gradient."""
    (left, up), mode = (conv.padding[1], conv.padding[0]), conv.padding_mode
    x = F.pad(x, (left, left, up, up), mode="constant" if mode == "zeros" else mode)
    patches = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)[0]
    groups, out = conv.groups, conv.out_channels
    a = patches.reshape(groups, -1, patches.shape[-1]).square()
    b = g[0].reshape(groups, out // groups, -1).square()
    return torch.einsum("gol,gil->goi", b, a).reshape(conv.weight.shape)


def _any_convolution(conv: nn.Module, p: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """One output gradient at a time (a transposed convolution: one input position at a time)."""
    total = torch.zeros_like(p)
    transposed = conv.transposed  # type: ignore[union-attr]
    driver = x if transposed else g
    for position in range(driver[0, 0].numel()):
        only = torch.zeros_like(driver)
        only.flatten(2)[:, :, position] = driver.flatten(2)[:, :, position]
        with torch.enable_grad():
            w = p.detach().requires_grad_(True)
            y = _call(conv, {"weight": w}, only if transposed else x)  # type: ignore[arg-type]
            total += torch.autograd.grad(y, w, g if transposed else only)[0].square()
    return total


def rows_summed(model: nn.Module, diagonal: Tensors) -> Tensors:
    """One number per output: rows of a weight, columns where it is stored transposed."""
    from transformers.pytorch_utils import Conv1D

    transposed = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, Conv1D)
        or (isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1)
    }
    return {
        name: d
        if d.ndim < 2
        else d.sum([i for i in range(d.ndim) if i != 1], keepdim=True)
        if name in transposed
        else d.flatten(1).sum(1).reshape(-1, *[1] * (d.ndim - 1))
        for name, d in diagonal.items()
    }


# -- cached references of the cases -------------------------------------------------------


@cache
def twin(name: str) -> nn.Module:
    return double(models.case(name).model)


@cache
def reference(name: str, unit: str) -> tuple[Tensors, Tensors]:
    """The sums of squares of a case, and the squared norms of its rows (not for positions)."""
    case = models.case(name)
    if unit == "position":
        return positions(case, twin(name)), {}
    return diagonal(twin(name), case.rows, case.likelihood, unit)


# -- comparison ---------------------------------------------------------------------------


def errors(
    found: Tensors,
    expected: Tensors,
    vanishes: Callable[[str], bool] = lambda name: False,
    floor: float = 0.0,
) -> dict[str, float]:
    """Relative error of every tensor, in the Frobenius norm.

    A tensor whose score vanishes in theory holds squares of rounding errors and nothing
    else: its error is taken relative to 1e-5 of the largest tensor's norm, so that a bound
    of 1e-5 means 1e-10 of the largest.

    Args:
        found: Estimate.
        expected: Truth.
        vanishes: Tells the tensors whose truth is zero in theory.
        floor: Share of the largest norm below which a tensor's own norm is no measure, for
            data of which nobody knows what it makes vanish. Without it, a degenerate truth
            is an error of the test.
    """
    assert list(found) == list(expected)
    largest = max(float(e.norm()) for e in expected.values())
    result = {}
    for name, e in expected.items():
        f = found[name].double()
        assert f.shape == e.shape, name
        size = max(float(e.norm()), floor * largest)
        if vanishes(name):
            assert size <= 1e-10 * largest, f"{name} does not vanish: the list of the case is wrong"
            size = 1e-5 * largest
        assert size > 1e-9 * largest, f"{name} is degenerate ({size:.1e}): this would test nothing"
        result[name] = float((f - e.double()).norm()) / size
    return result


def worst(*args: Any, **kwargs: Any) -> tuple[float, str]:
    return max((error, name) for name, error in errors(*args, **kwargs).items())
