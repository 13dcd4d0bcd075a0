"""Weights stored as integers: their scores are those of the matrix that they stand for.

A quantised linear layer computes ``y = x Wᵀ + b`` with a matrix ``W`` [out, in] that it never
holds. Adding ``x Dᵀ`` to its output moves ``W`` by ``D``, so the derivative with respect to
``D`` at zero is that with respect to ``W``. The stand-in of such a weight is this ``D``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.away import Absent, Displacement, added
from fisherscope.errors import CoverageError


class StandIn(Displacement):
    """A displacement [out, in] of the matrix that a layer's integers stand for.

    Attributes:
        modules: The layers that share the integers.
    """

    modules: tuple[nn.Linear, ...]


def stand_in(modules: Sequence[nn.Linear]) -> StandIn:
    """The stand-in of one quantised weight.

    Args:
        modules: The layers that share it.

    Returns:
        An fp32 tensor of the shape that the weight has unquantised.
    """
    first = modules[0]
    zero = torch.zeros((), device=first.weight.device)
    made = StandIn(zero.expand(first.out_features, first.in_features), requires_grad=False)
    made.modules, made.stored = tuple(modules), first.weight
    return made


def usable(model: nn.Module, wanted: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Put stand-ins in the place of quantised weights.

    Args:
        model: The model.
        wanted: Name to parameter.

    Returns:
        Name to parameter, all of them floating-point.

    Raises:
        CoverageError: If integers are wanted that no linear layer multiplies with.
    """
    owners: dict[int, list[nn.Linear]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            owners.setdefault(id(module.weight), []).append(module)
    lost = [n for n, p in wanted.items() if not p.is_floating_point() and id(p) not in owners]
    if lost:
        raise CoverageError(
            f"{', '.join(lost[:5])} hold integers that are no linear layer's weight and have no "
            "score; leave them out of parameters=, or load the model unquantised"
        )
    return {n: stand_in(owners[id(p)]) if id(p) in owners else p for n, p in wanted.items()}


@contextmanager
def movable(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Let layers compute with their parameters plus the displacements in their place.

    Args:
        parameters: Requested parameters; those that the model itself holds need nothing.

    Yields:
        Nothing.
    """
    parameters = list(parameters)
    with ExitStack() as stack:
        stack.enter_context(added([p for p in parameters if isinstance(p, Absent)]))
        for parameter in parameters:
            if isinstance(parameter, StandIn):
                for module in parameter.modules:
                    # Before anybody else's hook sees the output.
                    hook = _moved(parameter)
                    handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
                    stack.callback(handle.remove)
        yield


def _moved(displacement: StandIn) -> Any:
    def add(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        return output + F.linear(x.to(displacement.dtype), displacement).to(output.dtype)

    return add
