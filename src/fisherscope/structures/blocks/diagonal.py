"""Blocks of which only the diagonal is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.blocks.block import BlockMatrix
from fisherscope.structures.blocks.views import FlatView, Shapes
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.vectors import total


class DiagonalBlock(BlockMatrix):
    """A diagonal matrix; its products stay in the type of the sums."""

    kind: ClassVar[str] = "diagonal"

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
        """The parameters' names.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The keys.
        """
        return list(layout.names)

    @classmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Compare shapes.

        Args:
            layout: The block.
            sums: The Fisher's sums.
            parameters: Names and shapes.

        Raises:
            ParameterError: If a tensor doesn't have its parameter's shape.
        """
        for name in layout.names:
            if (held := tuple(sums[name].shape)) != parameters[name]:
                raise ParameterError(
                    f"sums[{name!r}] has shape {held}, but the parameter has {parameters[name]}."
                )

    def means(self, denominator: float) -> dict[str, Tensor]:
        """The diagonal, divided.

        Args:
            denominator: What to divide by.

        Returns:
            Parameter name to tensor.
        """
        return {name: self.sums[name] / denominator for name in self.layout.names}

    def diagonal(self) -> Tensor:
        """The sums themselves.

        Returns:
            ``[p]``.
        """
        return self.view.join(self.sums)

    def multiply(self, x: Tensor) -> Tensor:
        """The elementwise product.

        Args:
            x: ``[..., p]``.

        Returns:
            ``[..., p]``.
        """
        return self.diagonal() * x

    def spectrum(self) -> Tensor:
        """The diagonal.

        Returns:
            ``[p]``.
        """
        return self.diagonal()

    def spread(self, values: Tensor) -> Tensor:
        """Nothing: the coordinates are the eigenvectors.

        Args:
            values: ``[p]``.

        Returns:
            ``values``.
        """
        return values

    def nullity(self) -> int:
        """Number of zeros.

        Returns:
            The count; squares are exact, so only exact zeros count.
        """
        return int((self.diagonal() == 0).sum())

    def rotate(self, x: Tensor) -> Tensor:
        """Nothing: the coordinates are the eigenvectors.

        Args:
            x: ``[..., p]``.

        Returns:
            ``x``.
        """
        return x

    def unrotate(self, x: Tensor) -> Tensor:
        """Nothing, too.

        Args:
            x: ``[..., p]``.

        Returns:
            ``x``.
        """
        return x

    def inner(self, other: BlockMatrix) -> float:
        """The inner product of the diagonals.

        Args:
            other: A block of the same layout.

        Returns:
            The sum over parameters.
        """
        return total(self.diagonal(), other.diagonal())

    def fidelity(self, other: BlockMatrix) -> float:
        """The sum of the roots of the products.

        Args:
            other: A block of the same layout.

        Returns:
            The fidelity.
        """
        return total(self.diagonal().double().sqrt(), other.diagonal().double().sqrt())
