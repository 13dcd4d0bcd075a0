"""What parameters are scored by: numbers that add up to the score of a group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.analysis.access import own_weights, require_diagonal, squares, weights
from fisherscope.structures import Fisher

Method = Literal["fisher", "obd", "magnitude", "random"]


def additive(fisher: Fisher, model: nn.Module | None, method: Method) -> Callable[[str], Tensor]:
    r"""Scores of single parameters that add up over groups of them.

    Args:
        fisher: Any Fisher with a diagonal; for ``"magnitude"`` it is not read.
        model: The model that was estimated; not read for ``"fisher"``.
        method: ``"fisher"`` (sum of squared scores), ``"obd"`` (that times
            :math:`\tfrac12 \theta^2`) or ``"magnitude"`` (:math:`\theta^2`, whose sum is the
            squared L2 norm).

    Returns:
        A function from parameter name to non-negative tensor of the parameter's shape.

    Raises:
        ParameterError: If the Fisher has no diagonal, or if ``model`` is missing or has other
            parameters; for ``"obd"`` other weights are an ``IdentityError``.
    """  # noqa: DOC502 (raised by callees)
    wanted = f'masks(method="{method}")'
    if method == "magnitude":
        theta = weights(fisher, model, wanted)
        return lambda name: theta[name].double().square()
    require_diagonal(fisher, wanted)
    sums = squares(fisher)
    if method == "fisher":
        return sums.__getitem__
    theta = own_weights(fisher, model, wanted)
    return lambda name: sums[name].double() * theta[name].double().square() / 2


def uniforms(seed: int, name: str, n: int) -> Tensor:
    """Random scores that depend on seed and name alone.

    Args:
        seed: The seed.
        name: What they are of.
        n: How many.

    Returns:
        float64 ``[n]``, between 0 and 1.
    """
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
    return torch.from_numpy(np.random.default_rng([seed, key]).random(n))
