"""Linear layers: ``nn.Linear`` and the transposed ``Conv1D`` of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fisherscope.engine.layers.rule import Rule, positions_last, tensor_argument
from fisherscope.engine.scores import MatrixScore, Score, VectorScore


class LinearRule(Rule):
    """``y = x Wᵀ + b``, or ``y = x W + b`` where the weight is stored transposed."""

    label = "linear"

    def __init__(self, module: nn.Module, transposed: bool):
        super().__init__(module, {"weight": "matrix", "bias": "vector"})
        self.transposed = transposed

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        return (tensor_argument(args),)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        g = positions_last(gradient, batch)
        if "weight" in self.parameters:
            yield "weight", MatrixScore(g, positions_last(saved[0], batch), self.transposed)
        if "bias" in self.parameters:
            yield "bias", VectorScore(g)

    @property
    def factored(self) -> bool:  # noqa: D102
        return "weight" in self.parameters

    def inputs(self, saved: tuple[Tensor, ...], batch: int) -> Tensor:  # noqa: D102
        return positions_last(saved[0], batch)


def match(module: nn.Module) -> Rule | None:
    """The rule of a linear layer.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it is no linear layer.
    """
    if isinstance(module, nn.Linear):
        return LinearRule(module, transposed=False)
    if isinstance(module, Conv1D):
        return LinearRule(module, transposed=True)
    return None
