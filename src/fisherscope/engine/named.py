"""Tensors that come under names of parameters: gradients, displacements, masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fisherscope.engine.away import stored
from fisherscope.errors import NonFiniteError, ParameterError


def first_names(model: nn.Module, known: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Every name of some parameters of a model.

    Args:
        model: The model.
        known: First name to parameter, as :func:`fisherscope.engine.selection.select` has them.

    Returns:
        Name to first name: one entry per parameter, and one more for each further name of a
        tied one.
    """
    canonical = {id(stored(parameter)): name for name, parameter in known.items()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: canonical[id(p)] for name, p in everything if id(p) in canonical}


def by_first_name(
    values: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    what: str,
) -> dict[str, Tensor]:
    """Check tensors that someone passed under names of parameters.

    Args:
        values: Name to tensor.
        shapes: First name to shape of the parameter.
        names: Any name to first name, as :func:`first_names` has them.
        what: What is passed, with a verb, for messages: ``"displacement 'd' names"``.

    Returns:
        First name to detached tensor.

    Raises:
        ParameterError: If a name is unknown, a shape is wrong, or two names of one tied
            parameter come with different tensors.
        NonFiniteError: If a tensor holds NaN or infinite values.
    """
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if name not in names:
            raise ParameterError(
                f"{what} {name!r}, which is none of the {len(shapes)} parameters; names look like "
                f"{', '.join(list(names)[:3])}"
            )
        own = names[name]
        if tuple(value.shape) != tuple(shapes[own]):
            raise ParameterError(
                f"{what} {name!r} with shape {tuple(value.shape)}, but the parameter has "
                f"{tuple(shapes[own])}"
            )
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"{what} {name!r} with NaN or infinite values")
        if own in found and not torch.equal(found[own], value):
            raise ParameterError(f"{what} the tied parameter {own!r} in two ways, under two names")
        found[own] = value.detach()
    return found
