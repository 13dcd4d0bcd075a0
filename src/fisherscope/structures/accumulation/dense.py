"""Whole blocks of the Fisher matrix: outer products of per-example gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fisherscope.engine.contraction import add_gram, mirror
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.scores import Score
from fisherscope.errors import ParameterError
from fisherscope.structures.accumulation.base import Accumulator
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.rooms import Room, memory

# More than a workstation's memory for one matrix is a mistake rather than a wish.
_MOST_BYTES = 16 * 2**30


class DenseAccumulator(Accumulator):
    """Sums of ``vec(G_n) vec(G_n)ᵀ`` for each block of parameters.

    Args:
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        blocks: Names of the parameters of each block, in the model's order.
        room: Makes the sums.

    Raises:
        ParameterError: If a block's matrix would not fit into 16 GiB.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        coverage: Coverage,
        blocks: list[tuple[str, ...]],
        room: Room = memory,
    ):
        super().__init__(parameters, coverage, room)
        self._layout = tuple(BlockLayout("dense", names) for names in blocks)
        self._places: dict[str, tuple[int, slice]] = {}
        self._held: dict[tuple[int, int], Tensor] = {}
        self._sizes: list[int] = []
        for number, names in enumerate(blocks):
            start = 0
            for name in names:
                stop = start + parameters[name].numel()
                self._places[name] = (number, slice(start, stop))
                start = stop
            self._sizes.append(start)
            like = parameters[names[0]]
            check_size(names, start, 8 if like.dtype == torch.float64 else 4)
            self.sums[f"{names[0]}:matrix"] = self._open((start, start), like)

    @property
    def layout(self) -> tuple[BlockLayout, ...]:  # noqa: D102
        return self._layout

    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:  # noqa: D102
        self.complete = False
        block, place = self._places[name]
        shape = tuple(self.parameters[name].shape)
        if (draw, block) not in self._held:
            like = self.sums[f"{self._layout[block].names[0]}:matrix"]
            self._held[draw, block] = like.new_zeros((self._norms.shape[1], self._sizes[block]))
        gradients = score.dense(slice(0, rows.stop - rows.start), shape)
        self._held[draw, block][rows, place] += gradients.flatten(1)

    def close(self) -> None:  # noqa: D102
        for (draw, block), scores in self._held.items():
            add_gram(scores, self.sums[f"{self._layout[block].names[0]}:matrix"])
            for name in self._layout[block].names:
                part = scores[:, self._places[name][1]]
                self._record(name, slice(None), draw, part.square().sum(1))
        self._held.clear()

    def results(self) -> dict[str, Tensor]:  # noqa: D102
        return {key: mirror(total).detach().cpu() for key, total in self.sums.items()}


def check_size(names: tuple[str, ...], size: int, width: int) -> None:
    """Refuse a matrix that no machine of this kind holds.

    Args:
        names: Parameters of the block.
        size: Its number of parameters.
        width: Bytes of each entry.

    Raises:
        ParameterError: If it takes more than 16 GiB.
    """
    if size * size * width > _MOST_BYTES:
        raise ParameterError(
            f"the block of {names[0]!r}"
            + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
            + f" has {size:,} parameters: its matrix would take {size * size * width / 1e9:,.0f} "
            "GB. Use structure='kfac' or 'ekfac', smaller blocks, or fewer parameters= "
            f"(up to {math.isqrt(_MOST_BYTES // width):,} in one block)."
        )
