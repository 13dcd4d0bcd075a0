"""Blocks that are kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Self, cast

from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.blocks.block import BlockMatrix
from fisherscope.structures.blocks.views import FlatView, Shapes
from fisherscope.structures.eigen import Eigen, fidelity, symmetric_eigen
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.vectors import total


class DenseBlock(BlockMatrix):
    """A matrix over all parameters of the block."""

    kind: ClassVar[str] = "dense"

    @staticmethod
    def view_of(layout: BlockLayout, parameters: Shapes) -> FlatView:
        """All parameters as one vector.

        Args:
            layout: The block.
            parameters: Names and shapes.

        Returns:
            The view.
        """
        return FlatView(layout, parameters)

    @staticmethod
    def keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """The matrix.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The key.
        """
        return [f"{layout.names[0]}:matrix"]

    @classmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Compare the matrix with the number of parameters.

        Args:
            layout: The block.
            sums: The Fisher's sums.
            parameters: Names and shapes.

        Raises:
            ParameterError: If it doesn't fit.
        """
        (key,), (size,) = cls.keys(layout, sums), cls.view_of(layout, parameters).shape
        if tuple(sums[key].shape) != (size, size):
            raise ParameterError(
                f"sums[{key!r}] has shape {tuple(sums[key].shape)}, but the block {layout} has "
                f"{size} parameters, so {(size, size)}."
            )

    @property
    def _matrix(self) -> Tensor:
        return self.sums[f"{self.layout.names[0]}:matrix"]

    @cached_property
    def _eigen(self) -> Eigen:
        return symmetric_eigen(self._matrix, f"{self.layout.names[0]}:matrix")

    def means(self, denominator: float) -> dict[str, Tensor]:
        """The matrix, divided.

        Args:
            denominator: What to divide by.

        Returns:
            Its key and the matrix.
        """
        return {f"{self.layout.names[0]}:matrix": self._matrix / denominator}

    def diagonal(self) -> Tensor:
        """The diagonal.

        Returns:
            ``[p]``.
        """
        return self._matrix.diagonal()

    def multiply(self, x: Tensor) -> Tensor:
        """The product with vectors.

        Args:
            x: ``[..., p]``.

        Returns:
            float64 ``[..., p]``.
        """
        return x.double() @ self._matrix.double()

    def spectrum(self) -> Tensor:
        """The eigenvalues.

        Returns:
            float64 ``[p]``, ascending.
        """
        return self._eigen.values

    def spread(self, values: Tensor) -> Tensor:
        """The diagonal of the matrix with other eigenvalues.

        Args:
            values: ``[p]``.

        Returns:
            float64 ``[p]``.
        """
        return self._eigen.vectors.square() @ values.double()

    def nullity(self) -> int:
        """Eigenvalues within the rounding of the sums.

        Returns:
            The count.
        """
        return len(self._matrix) - self._eigen.rank

    def rotate(self, x: Tensor) -> Tensor:
        """Coordinates along the eigenvectors.

        Args:
            x: ``[..., p]``.

        Returns:
            float64 ``[..., p]``.
        """
        return x.double() @ self._eigen.vectors

    def unrotate(self, x: Tensor) -> Tensor:
        """Undo :meth:`rotate`.

        Args:
            x: ``[..., p]``.

        Returns:
            float64 ``[..., p]``.
        """
        return x.double() @ self._eigen.vectors.T

    def inner(self, other: BlockMatrix) -> float:
        """The inner product of the matrices.

        Args:
            other: A block of the same layout.

        Returns:
            The sum over elements.
        """
        return total(self._matrix, cast(Self, other)._matrix)

    def fidelity(self, other: BlockMatrix) -> float:
        """The fidelity, by both eigendecompositions.

        Args:
            other: A block of the same layout.

        Returns:
            The sum of the singular values of the product of the roots.
        """
        return fidelity(self._eigen, cast(Self, other)._eigen)
