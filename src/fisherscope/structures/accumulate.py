"""Scores of one batch after another become sums and a ledger."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine.coverage import Coverage
from fisherscope.engine.scores import Score


class Accumulator:
    """Sums of squared scores for the diagonal and grouped structures.

    The engine calls :meth:`add` as its sink; :meth:`batch_norms` closes a batch.

    Args:
        parameters: Requested name to parameter.
        coverage: Tells along which dimension a stored-transposed weight is grouped.
        structure: ``"diagonal"`` or ``"grouped"``.
        unit: ``"position"`` squares each position by itself, any other unit each example.

    Attributes:
        sums: Requested name to tensor on the model's device, fp32 or better.
        complete: Whether the sums hold whole batches only.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        coverage: Coverage,
        structure: str,
        unit: str,
    ):
        self._grouped = structure == "grouped"
        self._positions = unit == "position"
        self._columns = {name: i for i, name in enumerate(parameters)}
        self.sums = {
            name: torch.zeros(
                group_shape(tuple(p.shape), name in coverage.outputs_second)
                if self._grouped
                else p.shape,
                dtype=torch.float64 if p.dtype == torch.float64 else torch.float32,
                device=p.device,
            )
            for name, p in parameters.items()
        }
        self._norms: Tensor = torch.empty(0)
        self.complete = True

    def open_batch(self, examples: int, sets: int, device: torch.device) -> None:
        """Start the ledger rows of a batch.

        Args:
            examples: Number of examples in it.
            sets: Number of sets of labels whose norms are kept apart.
            device: Where the scores live.
        """
        shape = (sets, examples, len(self._columns))
        self._norms = torch.zeros(shape, dtype=torch.float64, device=device)
        self.complete = True

    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:
        """Take one score; the engine's sink.

        Args:
            name: Requested name.
            score: Score over the examples ``rows`` of the open batch.
            rows: Consecutive examples.
            draw: Number of the set of labels.
        """
        total = self.sums[name]
        self.complete = False
        if self._positions:
            norms = score.position_squares(total)
        elif self._grouped:
            norms = score.row_squares(total)
        else:
            norms = score.squares(total)
        kept = min(draw, self._norms.shape[0] - 1)
        self._norms[kept, rows, self._columns[name]] += norms

    def batch_norms(self) -> np.ndarray:
        """Squared score norms of the open batch.

        Returns:
            float64 [sets, examples, tensors].
        """
        self.complete = True
        return self._norms.cpu().numpy()


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
