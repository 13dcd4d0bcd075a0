"""Kronecker products of a factor of outputs and a factor of inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.blocks.block import BlockMatrix
from fisherscope.structures.blocks.views import MatrixView, Shapes
from fisherscope.structures.factors import Factor, check_pieces, piece_keys
from fisherscope.structures.layout import BlockLayout


class FactoredBlock(BlockMatrix):
    """What Kronecker products and their eigenvalue-corrected forms share."""

    @staticmethod
    def view_of(layout: BlockLayout, parameters: Shapes) -> MatrixView:
        """Weight and bias as one matrix.

        Args:
            layout: The block.
            parameters: Names and shapes.

        Returns:
            The view.
        """
        return MatrixView(layout, parameters)

    @classmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Compare the factors with the sides of the matrix view.

        Args:
            layout: The block.
            sums: The Fisher's sums.
            parameters: Names and shapes.

        Raises:
            ParameterError: If one doesn't fit.
        """
        sides = cls.view_of(layout, parameters).shape
        for prefix, size in zip(factor_prefixes(layout), sides, strict=True):
            if wrong := check_pieces(piece_keys(prefix, sums), sums, size):
                raise ParameterError(f"{wrong} for the block {layout} of shape {sides}.")


class KroneckerBlock(FactoredBlock):
    r"""The matrix :math:`G \otimes A / R`. Source: Martens and Grosse (2015)."""

    kind: ClassVar[str] = "kronecker"

    @staticmethod
    def keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """Both factors' pieces and the number of rows.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The keys.
        """
        gradients, inputs = factor_prefixes(layout)
        return [*piece_keys(gradients, sums), *piece_keys(inputs, sums), f"{layout.inputs}:rows"]

    @classmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Compare the factors with the sides of the matrix view.

        Args:
            layout: The block.
            sums: The Fisher's sums.
            parameters: Names and shapes.

        Raises:
            ParameterError: If one doesn't fit, or the number of rows is no float64 scalar.
        """
        super().check(layout, sums, parameters)
        rows = sums[f"{layout.inputs}:rows"]
        if rows.shape != () or rows.dtype != torch.float64 or not 0 <= rows.item() < float("inf"):
            raise ParameterError(
                f"sums['{layout.inputs}:rows'] must be a count in a float64 scalar, not {rows}."
            )

    @cached_property
    def _gradients(self):
        return self.factors[factor_prefixes(self.layout)[0]]

    @cached_property
    def _inputs(self):
        return self.factors[factor_prefixes(self.layout)[1]]

    # 1 / R; without rows A is zero, and so is the block.
    @cached_property
    def _scale(self) -> float:
        return 1 / (self.sums[f"{self.layout.inputs}:rows"].item() or 1.0)

    def means(self, denominator: float) -> dict[str, Tensor]:
        """The factors as means: G per unit, A per row; the block is their product.

        Args:
            denominator: What to divide G by.

        Returns:
            Key of a factor's piece to tensor.
        """
        gradients, inputs = (piece_keys(p, self.sums) for p in factor_prefixes(self.layout))
        return {key: self.sums[key] / denominator for key in gradients} | {
            key: self.sums[key] * self._scale for key in inputs
        }

    def diagonal(self) -> Tensor:
        """The outer product of the diagonals.

        Returns:
            float64 ``[out, in]``.
        """
        return torch.outer(self._gradients.diagonal(), self._inputs.diagonal() * self._scale)

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``G x A / R``.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        return self._inputs.before(self._gradients.after(x)) * self._scale

    def spectrum(self) -> Tensor:
        """Products of the factors' eigenvalues.

        Returns:
            float64 ``[out, in]``.
        """
        return torch.outer(self._gradients.values, self._inputs.values * self._scale)

    def spread(self, values: Tensor) -> Tensor:
        r"""The diagonal :math:`Q_G^{\circ 2} V (Q_A^{\circ 2})^T` for eigenvalues V.

        Args:
            values: ``[out, in]``.

        Returns:
            float64 ``[out, in]``.
        """
        gradients, inputs = self._gradients.vectors.square(), self._inputs.vectors.square()
        return inputs.T.before(gradients.after(values))

    def nullity(self) -> int:
        """Products with a factor's null eigenvalue.

        Returns:
            The count.
        """
        sides = self.view.shape
        return sides[0] * sides[1] - self._gradients.rank * self._inputs.rank

    def rotate(self, x: Tensor) -> Tensor:
        """Coordinates along the products of the factors' eigenvectors.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        return self._inputs.vectors.before(self._gradients.vectors.T.after(x))

    def unrotate(self, x: Tensor) -> Tensor:
        """Undo :meth:`rotate`.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        return self._inputs.vectors.T.before(self._gradients.vectors.after(x))

    def inner(self, other: BlockMatrix) -> float:
        """The product of the factors' inner products.

        Args:
            other: A block of the same layout.

        Returns:
            The Frobenius inner product.
        """
        theirs = cast(Self, other)
        gradients = self._gradients.inner(theirs._gradients)
        return gradients * self._inputs.inner(theirs._inputs) * self._scale * theirs._scale

    def fidelity(self, other: BlockMatrix) -> float:
        """The product of the factors' fidelities.

        Args:
            other: A block of the same layout.

        Returns:
            The fidelity.
        """
        theirs = cast(Self, other)
        gradients = self._gradients.fidelity(theirs._gradients)
        scale = math.sqrt(self._scale * theirs._scale)
        return gradients * self._inputs.fidelity(theirs._inputs) * scale

    def eigenvector(self, index: int) -> Tensor:
        """The outer product of an eigenvector of each factor.

        Args:
            index: Number of the entry of the spectrum, row-major.

        Returns:
            float64 ``[out, in]``.
        """
        output, input_ = divmod(index, self.view.shape[1])
        gradients, inputs = self._gradients.vectors, self._inputs.vectors
        return torch.outer(gradients.column(output), inputs.column(input_))

    def pair(self) -> tuple[Factor, Factor]:
        """The factor of outputs and the factor of inputs.

        Returns:
            Both, as other blocks share them.
        """
        return self._gradients, self._inputs


def factor_prefixes(layout: BlockLayout) -> tuple[str, str]:
    """Keys of a block's factors without the number of the piece.

    Args:
        layout: The block.

    Returns:
        Those of the factor of outputs and of the factor of inputs.
    """
    return f"{layout.names[0]}:gradients", f"{layout.inputs}:inputs"
