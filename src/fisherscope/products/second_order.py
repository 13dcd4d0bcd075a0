"""Hessian– and GGN–vector products by differentiating twice.

The generalised Gauss-Newton matrix is ``Σ Jᵀ H J`` with the Jacobian J of the outputs and the
closed-form Hessian H of the loss in the outputs; ``J v`` is the derivative of ``Jᵀ u`` in u.
Sources: Pearlmutter (1994); Schraudolph (2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fisherscope.data import batches
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.quantised import movable
from fisherscope.engine.quiet import undisturbed
from fisherscope.errors import CoverageError, NonFiniteError
from fisherscope.likelihoods import IGNORE, Likelihood
from fisherscope.preparation import Prepared


def add_products(
    prepared: Prepared,
    vectors: Mapping[str, Tensor],
    totals: Mapping[str, Tensor],
    curvature: str,
) -> None:
    """Add the products of the summed loss's curvature over all examples.

    Args:
        prepared: The request.
        vectors: Name to tensor [vectors, *shape] on the model's device; absent ones are zero.
        totals: Name of every requested parameter to a tensor of the same kind, changed in
            place.
        curvature: ``"ggn"`` or ``"hessian"``.

    Raises:
        CoverageError: If the model has an operation that can't be differentiated twice.
        NonFiniteError: If a product is not finite.
    """
    parameters = list(prepared.parameters.values())
    count = len(next(iter(totals.values())))
    product = _ggn if curvature == "ggn" else _hessian
    single = prepared.coverage.single
    with undisturbed(prepared.model), movable(parameters):
        for parameter in parameters:
            parameter.requires_grad_(True)
        for group in batches(prepared.examples, 1 if single else prepared.config.batch_size):
            batch = make_batch(prepared.model, group)
            targets = prepared.likelihood.targets(batch)
            try:
                # The fused kernels of attention have no second derivative; the plain one has.
                with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                    output = prepared.likelihood.outputs(call_model(prepared.model, batch), targets)
                    for number in range(count):
                        vector = [
                            vectors[n][number].to(p) if n in vectors else torch.zeros_like(p)
                            for n, p in prepared.parameters.items()
                        ]
                        found = product(prepared.likelihood, output, targets, parameters, vector)
                        for name, part in zip(totals, found, strict=True):
                            if part is not None:
                                totals[name][number] += part
            except RuntimeError as error:
                raise CoverageError(
                    f"the model can't be differentiated twice ({error}); load it with "
                    "attn_implementation='eager' and without fused or reentrant-checkpointed "
                    "blocks, or use curvature='fisher', which needs first derivatives only"
                ) from error
            if not all(bool(torch.isfinite(total).all()) for total in totals.values()):
                ids = ", ".join(repr(example.id) for example in group[:5])
                raise NonFiniteError(
                    f"a product with the {curvature} is not finite (batch of {ids}); look at these "
                    "examples and at the vector. Second derivatives are not scaled for fp16: use "
                    "bf16 or fp32 weights, or curvature='fisher'"
                )


def _grad(output: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], along: object, keep: bool):
    return torch.autograd.grad(
        output,
        inputs,
        grad_outputs=along,  # type: ignore[arg-type]
        create_graph=keep,
        retain_graph=True,
        allow_unused=True,
    )


def _ggn(
    likelihood: Likelihood,
    output: Tensor,
    targets: Tensor,
    parameters: Sequence[nn.Parameter],
    vector: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    cotangent = torch.zeros_like(output, requires_grad=True)
    pulled = _grad(output, parameters, cotangent, keep=True)
    used = [(g, v) for g, v in zip(pulled, vector, strict=True) if g is not None]
    (pushed,) = _grad([g for g, _ in used], [cotangent], [v for _, v in used], keep=False)
    with torch.no_grad():
        weighted = _output_curvature(likelihood, output, targets, pushed)
    return _grad(output, parameters, weighted, keep=False)


def _output_curvature(
    likelihood: Likelihood, output: Tensor, targets: Tensor, pushed: Tensor
) -> Tensor:
    """``H u`` with ``H = diag(p) − ppᵀ`` of each supervised row, or the identity."""
    if likelihood.name == "regression":
        return pushed
    p = torch.softmax(output.float() if output.dtype != torch.float64 else output, -1)
    moved = p * pushed
    moved = moved - p * moved.sum(-1, keepdim=True)
    return moved.masked_fill((targets == IGNORE).unsqueeze(-1), 0.0).to(output)


def _hessian(
    likelihood: Likelihood,
    output: Tensor,
    targets: Tensor,
    parameters: Sequence[nn.Parameter],
    vector: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    if likelihood.name == "regression":
        loss = 0.5 * (output - targets.to(output)).square().sum()
    else:
        rows = output.reshape(-1, output.shape[-1])
        loss = F.cross_entropy(rows, targets.reshape(-1), ignore_index=IGNORE, reduction="sum")
    gradient = _grad(loss, parameters, None, keep=True)
    used = [(g, v) for g, v in zip(gradient, vector, strict=True) if g is not None]
    along = sum((g * v).sum() for g, v in used)
    assert isinstance(along, torch.Tensor)
    return _grad(along, parameters, None, keep=False)
