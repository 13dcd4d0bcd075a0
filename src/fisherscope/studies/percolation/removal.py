"""Weights removed or disturbed inside of ``with``, and back bit by bit afterwards."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Removal = Literal["zero", "mean", "noise"]
REMOVALS = get_args(Removal)


@contextmanager
def replaced(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> Generator[None]:
    """Give parameters other values inside of ``with``.

    The original tensors are set aside, not computed back, so they return bitwise also after an
    exception.

    Args:
        parameters: Name to parameter.
        values: Name to tensor of the parameter's shape and type; a subset of the names.

    Yields:
        Nothing.
    """
    kept = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, original in kept.items():
            parameters[name].data = original


@torch.no_grad()
def without(
    parameters: Mapping[str, nn.Parameter],
    gone: Mapping[str, Tensor],
    removal: Removal = "zero",
    *,
    norm: float = 0.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The values of parameters after some of their weights were removed.

    Args:
        parameters: Name to parameter.
        gone: Name to boolean tensor that broadcasts to the parameter's shape: which weights.
        removal: ``"zero"``; ``"mean"``, the mean of the weight's tensor; or ``"noise"``: Gaussian
            noise is added to the chosen weights, whose length over all of them together is
            ``norm``, however many they are. Default: ``"zero"``.
        norm: Euclidean length of the noise. Default: 0.
        seed: Keys the noise. Default: 0.

    Returns:
        Name to new tensor, for the names of ``gone``.
    """
    if removal == "noise":
        return _disturbed(parameters, gone, norm, seed)
    found = {}
    for name, where in gone.items():
        p = parameters[name].data
        fill = p.new_zeros(()) if removal == "zero" else p.double().mean().to(p.dtype)
        found[name] = torch.where(where.to(p.device), fill, p)
    return found


def _disturbed(
    parameters: Mapping[str, nn.Parameter], gone: Mapping[str, Tensor], norm: float, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    # Drawn for all parameters, so that a weight's noise is the same whichever others are chosen.
    for name, p in parameters.items():
        drawn = torch.randn(p.shape, generator=generator)
        if name in gone:
            noise[name] = torch.where(gone[name].to(p.device), drawn.to(p.device), 0.0)
    length = math.sqrt(math.fsum(float(n.double().square().sum()) for n in noise.values()))
    scale = norm / length if length else 0.0
    return {
        name: (parameters[name].data.double() + scale * n.double()).to(parameters[name].dtype)
        for name, n in noise.items()
    }
