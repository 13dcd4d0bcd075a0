"""EKFAC eigenvalues: squared scores in the eigenbasis of the Kronecker factors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine import contraction
from fisherscope.engine.contraction import at_least_fp32
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.scores import Score
from fisherscope.engine.sharing import identical
from fisherscope.errors import CoverageError, IdentityError
from fisherscope.structures.accumulation.base import Accumulator, zeros
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.rooms import Room, memory


class EigenAccumulator(Accumulator):
    """Sums of ``(Q_Gᵀ G_n Q_A)²``: the best diagonal in a fixed Kronecker eigenbasis.

    Rows are rotated before the product of an example is formed, or the product after it,
    whichever takes fewer operations; weights that share their input share its rotation.
    Source: George et al. (2018).

    Args:
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: ``"position"`` squares each position by itself, any other unit each example.
        layout: Blocks of the KFAC whose eigenbasis is used.
        basis: Its eigenvectors by key, see :class:`~fisherscope.structures.KFACFisher`.
        room: Makes the sums.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        coverage: Coverage,
        unit: str,
        layout: Sequence[BlockLayout],
        basis: Mapping[str, Tensor],
        room: Room = memory,
    ):
        super().__init__(parameters, coverage, room)
        self._positions = unit == "position"
        kinds = {"kronecker": "eigen"}
        self._layout = tuple(
            BlockLayout(kinds.get(b.kind, b.kind), b.names, b.outputs_second, b.inputs)  # type: ignore[arg-type]
            for b in layout
            if b.names[0] in parameters
        )
        self._blocks = {name: block for block in self._layout for name in block.names}
        self._basis = dict(basis)
        self._bases: dict[str, list[Tensor]] = {}
        self._rotated: tuple[Tensor, str, Tensor] | None = None
        for block in self._layout:
            first_name = block.names[0]
            first = parameters[first_name]
            if block.kind == "eigen":
                sides = (f"{first_name}:gradients", f"{block.inputs}:inputs")
                shape = tuple(sum(len(basis[k]) for k in self._keys(side)) for side in sides)
                self.sums[f"{block.names[0]}:eigenvalues"] = self._open(shape, first)
            elif block.kind == "dense":
                self.sums[f"{block.names[0]}:matrix"] = self._open((first.numel(),) * 2, first)
            else:
                self.sums[block.names[0]] = self._open(tuple(first.shape), first)

    @property
    def layout(self) -> tuple[BlockLayout, ...]:  # noqa: D102
        return self._layout

    def coverage_text(self) -> dict[str, str]:  # noqa: D102
        words = {
            "eigen": "Kronecker eigenbasis",
            "dense": "whole block",
            "diagonal": "exact diagonal, no Kronecker factors",
        }
        return {
            name: f"{words[self._blocks[name].kind]} ({self.coverage.text[name]})"
            for name in self.parameters
        }

    def _eigenvectors(self, block: BlockLayout) -> tuple[list[Tensor], list[Tensor]]:
        return (
            self._pieces(f"{block.names[0]}:gradients"),
            self._pieces(f"{block.inputs}:inputs"),
        )

    def _pieces(self, prefix: str) -> list[Tensor]:
        if prefix not in self._bases:
            like = zeros((), next(iter(self.parameters.values())))
            self._bases[prefix] = [self._basis[key].to(like) for key in self._keys(prefix)]
        return self._bases[prefix]

    def _keys(self, prefix: str) -> list[str]:
        keys = (f"{prefix}.{number}" for number in itertools.count())
        return list(itertools.takewhile(self._basis.__contains__, keys))

    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:  # noqa: D102
        self.complete = False
        block = self._blocks[name]
        if block.kind == "eigen" and name == block.names[0]:
            norms = self._add_weight(block, score)
        elif block.kind == "eigen":
            # The bias is a column of its weight's block; the ledger keeps the two apart.
            norms = self._norms_of(name, score)
            self._record(block.names[0], rows, draw, -norms)
        elif block.kind == "dense":
            norms = self._add_dense(name, score)
        elif self._positions:
            norms = score.position_squares(self.sums[name])
        else:
            norms = score.squares(self.sums[name])
        self._record(name, rows, draw, norms)

    def _add_weight(self, block: BlockLayout, score: Score) -> Tensor:
        found = score.factors()
        if found is None:
            raise CoverageError(
                f"{block.names[0]} has Kronecker factors in the basis, but on these data it is "
                f"covered by {self.coverage.text[block.names[0]]}; estimate the basis over these "
                "data too, or leave the parameter out"
            )
        g, a = found
        q, r = self._eigenvectors(block)
        joint = len(block.names) > 1
        total = self.sums[f"{block.names[0]}:eigenvalues"]
        first = contraction.rotates_first(g.shape[1], *total.shape)
        if not (first or self._positions) and len(q) == len(r) == 1:
            augmented = _with_ones(at_least_fp32(a)) if joint else a
            return contraction.add_rotated_squares(g, augmented, q[0], r[0], total)
        g = rotate(at_least_fp32(g), q)
        a = self._rotate_inputs(block, a, r, joint)
        if self._positions:
            return contraction.add_position_squares(g, a, total)
        return contraction.add_squares(g, a, total)

    def _rotate_inputs(self, block: BlockLayout, a: Tensor, r: list[Tensor], joint: bool) -> Tensor:
        last = self._rotated
        if last is not None and last[1] == block.inputs and identical(last[0], a):
            return last[2]
        rotated = rotate(at_least_fp32(a), r, ones=joint)
        self._rotated = (a, block.inputs, rotated)
        return rotated

    def _norms_of(self, name: str, score: Score) -> Tensor:
        scratch = zeros(tuple(self.parameters[name].shape), self.parameters[name])
        return score.position_squares(scratch) if self._positions else score.squares(scratch)

    def _add_dense(self, name: str, score: Score) -> Tensor:
        g = score.dense(slice(None), (self.parameters[name].numel(),))
        contraction.add_gram(g, self.sums[f"{name}:matrix"])
        return g.square().sum(1)

    def resume(self, sums: Mapping[str, Tensor], layout: Sequence[BlockLayout]) -> None:  # noqa: D102
        super().resume(sums, layout)
        for key, vectors in self._used_basis().items():
            if not torch.equal(vectors, sums[key]):
                raise IdentityError(
                    f"the eigenvectors {key!r} are others than those of the factors."
                )

    def batch_norms(self) -> np.ndarray:  # noqa: D102
        self._rotated = None
        return super().batch_norms()

    def results(self) -> dict[str, Tensor]:  # noqa: D102
        found = {
            key: (contraction.mirror(t) if key.endswith(":matrix") else t).detach().cpu()
            for key, t in self.sums.items()
        }
        return self._used_basis() | found

    def _used_basis(self) -> dict[str, Tensor]:
        used = {f"{b.names[0]}:gradients" for b in self._layout if b.kind == "eigen"}
        used |= {f"{b.inputs}:inputs" for b in self._layout if b.kind == "eigen"}
        return {k: q for k, q in self._basis.items() if k.rpartition(".")[0] in used}


def rotate(x: Tensor, basis: Sequence[Tensor], ones: bool = False) -> Tensor:
    """Coordinates of rows in a block-diagonal orthogonal basis.

    Args:
        x: [..., features].
        basis: Eigenvectors as columns, one matrix per piece of the features.
        ones: Whether the rows end in a 1 that ``x`` doesn't have. Default: ``False``.

    Returns:
        [..., coordinates].
    """
    pieces = [piece.to(x) for piece in basis]
    if len(pieces) == 1 and ones:
        # The 1 adds the last row of the basis: no copy of x with one column more.
        flat = torch.addmm(pieces[0][-1], x.flatten(0, -2), pieces[0][:-1])
        return flat.unflatten(0, x.shape[:-1])
    if ones:
        x = _with_ones(x)
    parts = x.split([len(piece) for piece in pieces], -1)
    rotated = [torch.matmul(part, piece) for part, piece in zip(parts, pieces, strict=True)]
    return rotated[0] if len(rotated) == 1 else torch.cat(rotated, -1)


def _with_ones(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones((*a.shape[:-1], 1))], -1)
