"""Vectors in parameter space: checks and float64 reductions shared by the structures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fisherscope.arguments import check_number, check_tensors, check_whole
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


def check_vector(
    v: Mapping[str, Tensor], parameters: Mapping[str, tuple[int, ...]], *, batch: bool = False
) -> tuple[int, ...]:
    """Make sure that a vector in parameter space fits the parameters.

    Args:
        v: Parameter name to tensor; parameters that are absent count as zero.
        parameters: Names and shapes of the Fisher's parameters.
        batch: Whether a batch of vectors along one more, leading dimension is fine too.
            Default: ``False``.

    Returns:
        The shape of the batch: ``()``, or ``(n,)``.

    Raises:
        ParameterError: If a name is not covered or a shape is wrong.
    """
    check_tensors("the vector", v, "{parameter name: tensor}")
    lead: tuple[int, ...] | None = None
    for name, tensor in v.items():
        if name not in parameters:
            raise ParameterError(
                f"{name!r} is not covered by this Fisher ({len(parameters)} tensors, the first "
                f"{next(iter(parameters), None)!r}). Leave it out, or estimate with it."
            )
        shape, expected = tuple(tensor.shape), parameters[name]
        own = shape[: len(shape) - len(expected)] if batch else ()
        if shape != own + expected or len(own) > 1:
            raise ParameterError(f"{name!r} has shape {shape}, but the parameter has {expected}.")
        if lead not in {None, own}:
            raise ParameterError(
                f"{name!r} has shape {shape}, so a batch of {own}, but {next(iter(v))!r} has one "
                f"of {lead}: give every tensor the same number of vectors."
            )
        lead = own
    return lead or ()


def flatten(v: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Lay tensors one after another.

    Args:
        v: Name to tensor, all with the same batch dimensions before the shape.
        shapes: Names in order, with the shapes without batch.

    Returns:
        ``[..., p]``, each tensor row-major.
    """
    parts = []
    for name, shape in shapes.items():
        lead = v[name].shape[: v[name].ndim - len(shape)]
        parts.append(v[name].reshape((*lead, math.prod(shape))))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def unflatten(x: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Undo :func:`flatten`.

    Args:
        x: ``[..., p]``.
        shapes: Names in order, with their shapes.

    Returns:
        Name to a view of ``x``, shaped ``[..., *shape]``.
    """
    parts = x.split([math.prod(shape) for shape in shapes.values()], -1)
    return {
        name: part.reshape((*x.shape[:-1], *shape))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def sampler(n: int, seed: int) -> torch.Generator:
    """Where a sample's random numbers come from.

    Args:
        n: Number of vectors wanted.
        seed: Seed.

    Returns:
        A generator of its own, so that the global one stays as it is.

    Raises:
        ParameterError: If the number or the seed is not a whole number in range.
    """  # noqa: DOC502 (raised by callees)
    check_whole("n", n, low=1)
    check_whole("seed", seed, low=0)
    return torch.Generator().manual_seed(int(seed))


def check_damping(damping: float) -> None:
    """Make sure that damping is usable.

    Args:
        damping: Number to add to the diagonal.

    Raises:
        ParameterError: If it is negative or not finite.
    """  # noqa: DOC502 (raised by callees)
    check_number("damping", damping, low=0)


def check_power(power: float) -> None:
    """Make sure that a power of a matrix can be solved with.

    Args:
        power: 1 is the matrix itself, 0 the identity.

    Raises:
        ParameterError: If it is negative or not finite.
    """  # noqa: DOC502 (raised by callees)
    more = ": it is divided by this power of the matrix. To multiply, use matvec()"
    check_number("power", power, low=0, more=more)


def damp(name: str, diagonal: Tensor, damping: float) -> Tensor:
    """Add damping to a diagonal and make sure that the result can be inverted.

    Args:
        name: Parameter that the diagonal belongs to, for the message.
        diagonal: Entries of at least zero.
        damping: Number to add.

    Returns:
        A new tensor of positive entries.

    Raises:
        ParameterError: If zeros remain. If the damping is negative or not finite,
            :func:`check_damping` says so.
    """
    check_damping(damping)
    damped = diagonal + damping
    if zeros := int((damped == 0).sum()):
        raise ParameterError(
            f"the Fisher is singular: {zeros} of {damped.numel()} entries of {name!r} are zero. "
            "Pass a larger damping (a small fraction of the diagonal's mean is usual)."
        )
    return damped
