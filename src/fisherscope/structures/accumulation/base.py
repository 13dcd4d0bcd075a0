"""Scores of one batch after another become sums and a ledger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine.coverage import Coverage
from fisherscope.engine.scores import Score
from fisherscope.errors import IdentityError
from fisherscope.structures.layout import BlockLayout, check_same
from fisherscope.structures.rooms import Room, memory


class Accumulator(ABC):
    """Sums of one structure over batches.

    The engine calls :meth:`add` as its sink, :meth:`inputs` and :meth:`close` where
    ``needs_inputs`` says so; :meth:`batch_norms` ends a batch.

    Args:
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        room: Makes the sums.

    Attributes:
        sums: Key of the structure to tensor on the model's device, fp32 or better.
        complete: Whether the sums hold whole batches only. Whoever ends a batch sets it, when
            the batch is in the books too.
        needs_inputs: Whether the structure takes layer inputs from the forward pass.
    """

    needs_inputs = False

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], coverage: Coverage, room: Room = memory
    ):
        self.parameters = dict(parameters)
        self.coverage = coverage
        self._room = room
        self.sums: dict[str, Tensor] = {}
        self.complete = True
        self._columns = {name: i for i, name in enumerate(parameters)}
        self._norms: Tensor = torch.empty(0)

    @property
    def layout(self) -> tuple[BlockLayout, ...]:
        """The blocks that the sums belong to; empty for structures without blocks."""
        return ()

    def coverage_text(self) -> dict[str, str]:
        """Parameter name to the rule that produced it."""
        return dict(self.coverage.text)

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

    @abstractmethod
    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:
        """Take one score; the engine's sink.

        Args:
            name: Requested name.
            score: Score over the examples ``rows`` of the open batch.
            rows: Consecutive examples.
            draw: Number of the set of labels.
        """

    def inputs(self, name: str, a: Tensor, mask: Tensor | None) -> None:
        """Take the input of a layer, once per forward pass.

        Args:
            name: Requested name of the weight.
            a: Input rows [batch, shared, in].
            mask: Rows that can carry gradient [batch, shared]; ``None`` for all.
        """
        del name, a, mask

    def close(self) -> None:
        """Take note that all scores of the sets of labels so far have arrived."""
        return

    def batch_norms(self) -> np.ndarray:
        """End the batch.

        Returns:
            Squared score norms, float64 [sets, examples, tensors].
        """
        return self._norms.cpu().numpy()

    def absorb(self, other: Accumulator) -> None:
        """Add the sums of another accumulator over other examples.

        Args:
            other: Of the same structure and parameters.
        """
        self.complete = False
        for key, total in other.sums.items():
            self.sums[key].add_(total)

    def resume(self, sums: Mapping[str, Tensor], layout: Sequence[BlockLayout]) -> None:
        """Go on from earlier sums.

        Args:
            sums: As :meth:`results` gave them.
            layout: Their blocks.

        Raises:
            IdentityError: If they are not sums of this kind.
        """
        check_same(self.layout, layout)
        for key, total in self.sums.items():
            if key not in sums or sums[key].shape != total.shape:
                raise IdentityError(f"the sum {key!r} is missing, or has another shape.")
            # Going on from the same sums, not adding to them at the end, rounds the same way.
            total.copy_(sums[key])

    def results(self) -> dict[str, Tensor]:
        """The sums as a Fisher keeps them.

        Returns:
            Tensors on the CPU; those that are there already are the sums themselves, which are
            not to be held twice.
        """
        return {key: total.detach().cpu() for key, total in self.sums.items()}

    def _open(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._room(shape, sum_type(like), like.device)

    def _record(self, name: str, rows: slice, draw: int, norms: Tensor) -> None:
        self.complete = False
        kept = min(draw, self._norms.shape[0] - 1)
        self._norms[kept, rows, self._columns[name]] += norms


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Something to add to for a while, where a parameter lives.

    Args:
        shape: Its shape.
        like: The parameter.

    Returns:
        Zeros of the type of the parameter's sums.
    """
    return memory(shape, sum_type(like), like.device)


def sum_type(like: Tensor) -> torch.dtype:
    """The type of a parameter's sums.

    Args:
        like: The parameter.

    Returns:
        fp64 for an fp64 parameter and fp32 for all others.
    """
    return torch.float64 if like.dtype == torch.float64 else torch.float32
