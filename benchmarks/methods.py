"""Every way of computing the diagonal Fisher that the benchmark knows, one function each.

The neighbouring libraries are in ``neighbours.py``, this one in ``ours.py``.
"""

from __future__ import annotations

import neighbours
import ours
import torch
from case import Case, Method, Prepared
from models import Shape, logits, negative_log_likelihood
from torch import Tensor


def plain(case: Case) -> Prepared:
    """One forward and one backward pass with gradients for all weights: the unit of time."""

    def run() -> None:
        case.model.zero_grad(set_to_none=True)
        case.loss(case.x, case.y).backward()

    return Prepared(run)


def floor(case: Case) -> Prepared:
    """The same without any weight gradient: what every one-pass method pays at least."""
    for parameter in case.model.parameters():
        parameter.requires_grad_(False)
    if case.shape.is_lm:
        embeddings = case.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, inputs, out: out.requires_grad_())
    else:
        case.model.stem.register_forward_hook(lambda module, inputs, out: out.requires_grad_())
    return Prepared(lambda: case.loss(case.x, case.y).backward())


def forward(case: Case) -> Prepared:
    """The forward pass of the plain step with its graph: what memory is compared with."""
    return Prepared(lambda: case.loss(case.x, case.y))


def naive(case: Case) -> Prepared:
    """One example at a time through plain autograd."""
    parameters = dict(case.model.named_parameters())
    sums: dict[str, Tensor] = {}

    def run() -> None:
        sums.update(case.zeros())
        for x, y in zip(case.x.split(1), case.y.split(1), strict=True):
            case.model.zero_grad(set_to_none=True)
            case.loss(x, y).backward()
            for name, parameter in parameters.items():
                sums[name].addcmul_(parameter.grad, parameter.grad)

    return Prepared(run, lambda: sums)


def vmap(case: Case) -> Prepared:
    """``torch.func.vmap(grad)`` over a functional call of the model."""
    from torch.func import functional_call, grad
    from torch.func import vmap as over_examples

    weights = {name: p.detach() for name, p in case.model.named_parameters()}
    buffers = dict(case.model.named_buffers())

    def of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def model(*args: Tensor, **kwargs: Tensor) -> Tensor:
            return functional_call(case.model, (weights, buffers), args, kwargs)

        output = logits(case.shape, model, x.unsqueeze(0))
        return negative_log_likelihood(case.shape, output, y.unsqueeze(0))

    gradients = over_examples(grad(of_one), in_dims=(None, 0, 0))
    sums: dict[str, Tensor] = {}

    def run() -> None:
        sums.update(case.zeros())
        for x, y in case.chunks():
            for name, value in gradients(weights, x, y).items():
                sums[name].add_(value.square_().sum(0))

    return Prepared(run, lambda: sums)


def brute_force(case: Case) -> dict[str, Tensor]:
    """The reference: one example at a time in float64."""
    model = case.model.double()
    parameters = dict(model.named_parameters())
    sums = case.zeros()
    for x, y in zip(case.x.split(1), case.y.split(1), strict=True):
        x = x if case.shape.is_lm else x.double()
        gradients = torch.autograd.grad(case.loss(x, y), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name].addcmul_(gradient, gradient)
    return sums


def row_sums(shape: Shape, name: str, diagonal: Tensor) -> Tensor:
    """The grouped counterpart of a diagonal: one number per output row, vectors as they are."""
    if diagonal.ndim == 1:
        return diagonal
    # GPT-2 stores its projections as [in, out].
    if shape.family == "gpt2" and ".c_" in name:
        return diagonal.sum(0)
    return diagonal.flatten(1).sum(1)


LMS = ("gpt2", "llama")


def _sampled(draws: int):
    return ours.estimate(fisher_type="mc", unit="token", draws=draws)


METHODS = {
    method.name: method
    for method in [
        Method("plain", "plain step (control)", plain, reference=""),
        Method("floor", "no weight gradients", floor, reference=""),
        Method("forward", "forward pass alone", forward, reference=""),
        Method("naive", "naive loop", naive),
        Method("vmap", "vmap(grad)", vmap, chunked=True),
        Method("opacus", "Opacus", neighbours.opacus, chunked=True),
        Method("nngeometry", "nngeometry", neighbours.nngeometry, chunked=True),
        Method("backpack", "BackPACK", neighbours.backpack, chunked=True),
        Method("kronfluence", "kronfluence", neighbours.kronfluence, chunked=True),
        Method("ours", "ours", ours.estimate()),
        Method("ours-unfused", "ours, head not fused", ours.estimate(fused=False), families=LMS),
        Method("ours-grouped", "grouped", ours.estimate(structure="grouped"), reference="grouped"),
        Method("ours-position", "position unit", ours.estimate(unit="position"), reference=""),
        Method("ours-mc", "sampled labels, token unit", _sampled(1), reference="", families=LMS),
        Method("ours-mc2", "the same, two draws", _sampled(2), reference="", families=LMS),
        Method("ours-plan", "plan and verification, once", ours.planning, reference=""),
    ]
}
