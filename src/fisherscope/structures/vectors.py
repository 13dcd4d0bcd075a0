"""Vectors in parameter space: checks and float64 reductions shared by the structures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from fisherscope.errors import ParameterError

# Elements widened to float64 at a time, so that reading a large Fisher costs no second copy.
_CHUNK = 1 << 22


def total(*factors: Tensor, function: Callable[[Tensor], Tensor] | None = None) -> float:
    """Sum over elements of the product of equally shaped tensors, in float64.

    Args:
        factors: One or more tensors of the same shape, on the CPU.
        function: Elementwise function applied to the float64 product before it is summed.
            Default: ``None``.

    Returns:
        The sum, computed without widening whole tensors at once.
    """
    flat = [factor.reshape(-1) for factor in factors]
    parts = []
    for start in range(0, flat[0].numel(), _CHUNK):
        product = flat[0][start : start + _CHUNK].double()
        for factor in flat[1:]:
            product = product * factor[start : start + _CHUNK].double()
        parts.append((function(product) if function else product).sum().item())
    return math.fsum(parts)


def check_vector(v: Mapping[str, Tensor], parameters: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that a vector in parameter space fits the parameters.

    Args:
        v: Parameter name to tensor; parameters that are absent count as zero.
        parameters: Names and shapes of the Fisher's parameters.

    Raises:
        ParameterError: If a name is not covered or a shape is wrong.
    """
    for name, tensor in v.items():
        if name not in parameters:
            raise ParameterError(
                f"{name!r} is not covered by this Fisher ({len(parameters)} tensors, the first "
                f"{next(iter(parameters), None)!r}). Leave it out, or estimate with it."
            )
        if tuple(tensor.shape) != parameters[name]:
            raise ParameterError(
                f"{name!r} has shape {tuple(tensor.shape)}, but the parameter has "
                f"{parameters[name]}."
            )


def damp(name: str, diagonal: Tensor, damping: float) -> Tensor:
    """Add damping to a diagonal and make sure that the result can be inverted.

    Args:
        name: Parameter that the diagonal belongs to, for the message.
        diagonal: Entries of at least zero.
        damping: Number to add.

    Returns:
        A new tensor of positive entries.

    Raises:
        ParameterError: If the damping is negative or not finite, or if zeros remain.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise ParameterError(f"damping={damping!r} must be a finite number of at least 0.")
    damped = diagonal + damping
    if zeros := int((damped == 0).sum()):
        raise ParameterError(
            f"the Fisher is singular: {zeros} of {damped.numel()} entries of {name!r} are zero. "
            "Pass a larger damping (a small fraction of the diagonal's mean is usual)."
        )
    return damped
