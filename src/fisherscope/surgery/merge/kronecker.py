"""Coordinates in which two Kronecker blocks are diagonal at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherscope.structures.blocks.kronecker import factor_prefixes
from fisherscope.structures.eigen import symmetric_eigen
from fisherscope.structures.factors import BlockDiagonal, Factor
from fisherscope.surgery.merge.curvature import Term


@dataclass(frozen=True)
class Coordinates:
    r"""A basis S with :math:`S^T M_i S` diagonal for two matrices :math:`M_i`.

    Attributes:
        basis: S; columns of directions that neither matrix knows are zero.
        inverse: Its pseudo-inverse.
        first: Diagonal of the first matrix.
        second: Diagonal of the second matrix.
    """

    basis: BlockDiagonal
    inverse: BlockDiagonal
    first: Tensor
    second: Tensor

    def into(self, x: Tensor) -> Tensor:
        """Vectors, in columns, to coordinates.

        Args:
            x: ``[n, k]``.

        Returns:
            float64 ``[n, k]``.
        """
        return self.inverse.after(x)

    def back(self, y: Tensor) -> Tensor:
        """Undo :meth:`into`.

        Args:
            y: ``[n, k]``.

        Returns:
            float64 ``[n, k]``.
        """
        return self.basis.after(y)


def coordinates(
    terms: Sequence[Term],
) -> tuple[Coordinates, Coordinates, tuple[Tensor, Tensor]]:
    r"""Diagonalise two Kronecker blocks :math:`c_i\, G_i \otimes A_i` simultaneously.

    A product of the two bases makes both blocks diagonal, so that the minimum of
    :math:`\sum_i (\theta-\theta_i)^T F_i (\theta-\theta_i)` is a weighted mean, coordinate by
    coordinate.

    Args:
        terms: Two Kronecker blocks of the same layout.

    Returns:
        Coordinates of outputs and of inputs, and both blocks' diagonals ``[out, in]``.
    """
    factors = [
        [term.block.factors[prefix] for prefix in factor_prefixes(term.block.layout)]
        for term in terms
    ]
    sizes = [[_trace(factor) for factor in pair] for pair in factors]
    outputs, inputs = (
        _simultaneous(factors[0][side], factors[1][side], sizes[0][side], sizes[1][side])
        for side in (0, 1)
    )
    diagonals = []
    for number, term in enumerate(terms):
        rows = term.block.sums[f"{term.block.layout.inputs}:rows"].item() or 1.0
        gradients, a = ((c.first, c.second)[number] for c in (outputs, inputs))
        # Factors were divided by their traces, so that neither task drowns the other's.
        size = term.weight * term.scale * sizes[number][0] * sizes[number][1] / rows
        diagonals.append(size * torch.outer(gradients, a))
    return outputs, inputs, (diagonals[0], diagonals[1])


def _trace(factor: Factor) -> float:
    return float(factor.diagonal().sum())


def _simultaneous(one: Factor, two: Factor, size_one: float, size_two: float) -> Coordinates:
    parts = [
        _pair(a / (size_one or 1.0), b / (size_two or 1.0), f"{one.name}.{number}")
        for number, (a, b) in enumerate(zip(one.pieces, two.pieces, strict=True))
    ]
    basis, inverse, first, second = zip(*parts, strict=True)
    return Coordinates(
        BlockDiagonal(basis), BlockDiagonal(inverse), torch.cat(first), torch.cat(second)
    )


def _pair(one: Tensor, two: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Whiten by the sum, which is definite wherever one of the two is, then rotate. A direction
    # within the rounding of the stored sums belongs to neither.
    eigen = symmetric_eigen(one + two, f"the sum of both models' {name}")
    n, rank = len(one), eigen.rank
    vectors, roots = eigen.vectors[:, n - rank :], eigen.values[n - rank :].sqrt()
    white = vectors / roots
    one, two = one.double(), two.double()
    inner = white.T @ one @ white
    turn = torch.linalg.eigh((inner + inner.T) / 2)[1]
    basis = white @ turn
    inverse = turn.T @ (vectors * roots).T
    missing = n - rank
    pad = torch.nn.functional.pad
    diagonals = [
        pad((basis * (matrix @ basis)).sum(0).clamp(min=0), (0, missing)) for matrix in (one, two)
    ]
    return pad(basis, (0, missing)), pad(inverse, (0, 0, 0, missing)), diagonals[0], diagonals[1]
