"""The exact slow path: one example at a time through plain autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fisherscope.data import Batch
from fisherscope.engine.contraction import at_least_fp32
from fisherscope.engine.formats import unscaled
from fisherscope.engine.head import call_model
from fisherscope.engine.probe import anchored
from fisherscope.engine.quantised import movable
from fisherscope.engine.steps import Steps
from fisherscope.labels import Wanted
from fisherscope.likelihoods import Likelihood


def one_by_one(
    model: nn.Module,
    likelihood: Likelihood,
    batch: Batch,
    labels: Sequence[tuple[Tensor, Wanted | None]],
    parameters: dict[str, nn.Parameter],
    scale: float = 1.0,
    steps: Steps | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Plain autograd for one example: the exact path of every parameter without a rule.

    Args:
        model: The model, frozen.
        likelihood: Its likelihood.
        batch: A batch of one.
        labels: Targets, and what takes their place if anything; one entry per backward pass.
        parameters: Name to parameter.
        scale: What the backward passes are multiplied by. Default: ``1.0``.
        steps: Who takes the passes. Default: ``None``, this process for itself.

    Yields:
        Name to gradient of the summed loss, fp32 or better, without the scale; one dictionary
        per entry of ``labels``.
    """
    steps = steps or Steps()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        # Also around the backward pass, in which checkpointing runs layers again.
        with anchored(model), movable(parameters.values()):
            with torch.enable_grad():
                returned = steps.forward(lambda: call_model(model, batch))
                output = likelihood.outputs(returned, labels[0][0])
            for number, (targets, wanted) in enumerate(labels):
                rows = output.detach().reshape(-1, output.shape[-1])
                rows = (
                    rows.clone()
                    if rows.dtype == torch.float64
                    else rows.to(torch.float32, copy=True)
                )
                flat = targets if targets.shape == output.shape else targets.reshape(-1)
                what = [wanted.map(lambda u, f=flat: u.reshape(f.shape))] if wanted else []
                _, ((_, derivative),) = likelihood.evaluate(rows, flat, what)
                # Not autograd.grad: reentrant checkpointing supports only backward().
                if output.requires_grad:
                    scaled = derivative if scale == 1.0 else derivative * scale
                    derivative = scaled.reshape(output.shape).to(output.dtype)
                    more = number < len(labels) - 1
                    steps.backward(
                        lambda keep, d=derivative, more=more: output.backward(
                            d, retain_graph=more or keep
                        )
                    )
                gradients = {}
                for name, parameter in parameters.items():
                    g = parameter.grad
                    g = torch.zeros_like(parameter) if g is None else g
                    gradients[name] = at_least_fp32(unscaled(g, scale))
                    parameter.grad = None
                yield gradients
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
