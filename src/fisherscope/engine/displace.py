"""Look at the model at other weights, and get it back bit by bit."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fisherscope.engine.quantised import movable


@contextmanager
def displaced(
    parameters: Mapping[str, nn.Parameter], delta: Mapping[str, Tensor]
) -> Generator[None]:
    """Move parameters by a displacement inside ``with``.

    The original tensors are set aside, not recomputed, so they come back bitwise also
    after an exception.

    Args:
        parameters: Name to parameter.
        delta: Name to displacement of the parameter's shape; a subset of the names.

    Yields:
        Nothing.
    """
    kept = {name: parameters[name].data for name in delta}
    try:
        with torch.no_grad():
            for name, move in delta.items():
                parameters[name].data = (kept[name] + move.to(kept[name])).to(kept[name].dtype)
        with movable(parameters[name] for name in delta):
            yield
    finally:
        for name, original in kept.items():
            parameters[name].data = original
