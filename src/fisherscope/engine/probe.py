"""An identity in the forward pass that reports input and output gradient in the backward pass.

A tensor hook on a layer's output would miss recomputation under gradient checkpointing,
and a parameter hook would see gradients that are already summed over examples. A custom
autograd function sees each use of a layer exactly once: without checkpointing, and under
both kinds of it, because only the graph that the backward pass really walks runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

Callback = Callable[[tuple[Tensor, ...], Tensor], None]


class Probe(torch.autograd.Function):
    """Identity on a layer output; the backward pass calls ``callback(saved, gradient)``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, callback: Callback, *saved: Tensor):
        """Return ``output`` itself and remember what the layer's rule needs.

        Args:
            ctx: Autograd context.
            output: The layer's output, any shape.
            anchor: Scalar leaf that requires grad, so that a graph exists although every
                parameter is frozen.
            callback: Receives the saved tensors and the gradient of ``output``.
            *saved: Tensors that the callback needs; autograd itself raises if one of them
                is modified in place before the backward pass.

        Returns:
            ``output``, now part of the graph, or a tensor that shares its memory.
        """
        ctx.callback = callback
        ctx.save_for_backward(*saved)
        if _reshaped_product(output):
            # Changing a view in place costs two copies of its gradient in the backward pass.
            return output.data
        # Marked as changed in place rather than returned as a view: models that follow a
        # layer by an in-place activation would fail on a view.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        """Report, then pass the gradient on unchanged.

        Args:
            ctx: Autograd context.
            *gradients: The one gradient of the output.

        Returns:
            Gradients for the arguments of :meth:`forward`.
        """
        (gradient,) = gradients
        saved = ctx.saved_tensors  # checkpointing allows them to be unpacked only once
        ctx.callback(saved, gradient)
        return (gradient, None, None, *([None] * len(saved)))


def _reshaped_product(output: Tensor) -> bool:
    """Whether the output is all of a matrix product with bias, seen in another shape.

    Autograd keeps the factors of such a product but not its result, and nobody else holds
    that: a tensor of its own on the same memory can then safely take the view's place.

    Args:
        output: A layer's output.

    Returns:
        Whether it is.
    """
    base = output._base
    return (
        base is not None
        and base.grad_fn is not None
        and base.grad_fn.name() == "AddmmBackward0"
        and base.numel() == output.numel()
    )


def watch(output: Tensor, anchor: Tensor, callback: Callback, *saved: Tensor) -> Tensor:
    """Put a probe on a layer's output.

    Args:
        output: The layer's output.
        anchor: Scalar leaf that requires grad.
        callback: As in :class:`Probe`.
        *saved: As in :class:`Probe`.

    Returns:
        The output, part of the graph.
    """
    if output.is_leaf and output.requires_grad:
        # Somebody's hook asked for input gradients, so that checkpointing works with frozen
        # embeddings. The anchor does that; a leaf can't be marked as changed in place.
        output = output.detach()
    elif output._is_view() and isinstance(output.grad_fn, BackwardCFunction):
        # A view made inside somebody's own autograd function: torch forbids to mark it.
        output = output.clone()
    return Probe.apply(output, anchor, callback, *saved)


@contextmanager
def anchored(model: nn.Module) -> Generator[None]:
    """Make the graph start at the first layers, although every parameter may be frozen.

    Reentrant checkpointing records nothing inside a block whose input does not require
    grad; with frozen embeddings that would silently lose the block's scores.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    anchor = torch.zeros((), requires_grad=True)

    def start(module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        floating = isinstance(output, torch.Tensor) and output.is_floating_point()
        if not floating or output.requires_grad or not torch.is_grad_enabled():
            return output
        return watch(output, anchor, lambda saved, gradient: None)

    owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(start) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
