"""Who needs the weights themselves refuses a model of which parts are elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from fisherscope.engine.away import is_away, rest
from fisherscope.engine.split import is_split
from fisherscope.errors import ParameterError

P = ParamSpec("P")
R = TypeVar("R")


def needs_whole(call: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse sharded and offloaded models and tensors before any work.

    Args:
        call: Takes models or tensors, by themselves or in a dictionary or list.

    Returns:
        The same, behind a check of all its arguments.
    """
    name = call.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for argument in (*args, *kwargs.values()):
            check_whole(argument, f"{name}()")
        return call(*args, **kwargs)

    return checked


def check_whole(argument: Any, caller: str) -> None:
    """Refuse what is elsewhere.

    Args:
        argument: A model or a tensor, or such in a dictionary or list; of anything else, nothing
            is looked at.
        caller: Who needs it.

    Raises:
        ParameterError: If only a part of a tensor is here, or nothing.
    """
    for name, tensor in _tensors(argument):
        if is_away(tensor):
            how, fix = (
                ("split over ranks", "gather it (full_tensor, full_state_dict) into one process")
                if is_split(tensor)
                else ("offloaded, or without weights", "load it without device_map= and offloading")
            )
            raise ParameterError(
                f"parameter {name!r} is {how}: {caller} can't read it there. plan(), estimate() "
                f"and estimate_into() can; for all else use the model whole: {fix}"
            )


def _tensors(argument: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters of models, and tensors of dictionaries, by name."""
    if isinstance(argument, nn.Module):
        rest(argument)
        yield from argument.named_parameters()
    elif isinstance(argument, dict):
        for key, value in argument.items():
            if isinstance(value, Tensor):
                yield str(key), value
            else:
                yield from _tensors(value)
    elif isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], nn.Module):
        for model in argument:
            yield from _tensors(model)
