"""Squared scores, summed: the diagonal, its group sums, and the squared sum of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine.coverage import Coverage
from fisherscope.engine.scores import Score
from fisherscope.structures.accumulation.base import Accumulator, zeros
from fisherscope.structures.rooms import Room, memory


class SquaresAccumulator(Accumulator):
    """Sums of squared scores for the diagonal and grouped structures.

    Args:
        parameters: Requested name to parameter.
        coverage: Tells along which dimension a stored-transposed weight is grouped.
        grouped: Sum over each output's parameters.
        unit: ``"position"`` squares each position by itself, ``"batch"`` the sum over the
            batch, any other unit each example.
        room: Makes the sums.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        coverage: Coverage,
        grouped: bool,
        unit: str,
        room: Room = memory,
    ):
        super().__init__(parameters, coverage, room)
        self._grouped, self._unit = grouped, unit
        self._batch: dict[tuple[int, str], Tensor] = {}
        self.sums = {
            name: self._open(
                group_shape(tuple(p.shape), name in coverage.outputs_second)
                if grouped
                else tuple(p.shape),
                p,
            )
            for name, p in parameters.items()
        }

    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:  # noqa: D102
        total = self.sums[name]
        self.complete = False
        if self._unit == "batch":
            parameter = self.parameters[name]
            held = self._batch.setdefault((draw, name), zeros(tuple(parameter.shape), parameter))
            score.add(held)
            return
        if self._unit == "position":
            norms = score.position_squares(total)
        elif self._grouped:
            norms = score.row_squares(total)
        else:
            norms = score.squares(total)
        self._record(name, rows, draw, norms)

    def batch_norms(self) -> np.ndarray:  # noqa: D102
        examples = self._norms.shape[1]
        for (draw, name), summed in self._batch.items():
            squares = summed.square_()
            self.sums[name].add_(squares.sum_to_size(self.sums[name].shape))
            # One number for the whole batch: the ledger's groups say so.
            self._record(name, slice(None), draw, squares.sum(dtype=torch.float64) / examples)
        self._batch.clear()
        return super().batch_norms()


def group_shape(shape: tuple[int, ...], outputs_second: bool) -> tuple[int, ...]:
    """Shape of a parameter's group sums: size 1 along the dimensions summed over.

    Args:
        shape: The parameter's shape.
        outputs_second: Whether outputs are the second dimension, as in transformers'
            ``Conv1D`` and in transposed convolutions without groups.

    Returns:
        A shape with as many dimensions.
    """
    kept = int(outputs_second)
    return tuple(size if i == kept or len(shape) == 1 else 1 for i, size in enumerate(shape))
