"""What every kind of block can do; everything else follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisherscope.structures.blocks.views import Shapes, View
from fisherscope.structures.factors import Factors
from fisherscope.structures.layout import BlockLayout


class BlockMatrix(ABC):
    """One symmetric block of the matrix, as a sum over examples and draws.

    Vectors are in the shape of ``view`` with any batch dimensions before it. The block is
    ``Q diag(spectrum) Q^T``: :meth:`rotate` multiplies by ``Q^T``, :meth:`unrotate` by Q.

    Args:
        layout: What the block is made of.
        sums: The Fisher's sums.
        parameters: Names and shapes of the Fisher's parameters.
        factors: The Fisher's Kronecker factors.

    Attributes:
        kind: The kind of layout that the class reads.
        view: How the block sees its parameters.
        dtype: What its sums are stored in.
    """

    kind: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[BlockMatrix]]] = {}

    view: View

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            BlockMatrix.registry[cls.kind] = cls

    def __init__(
        self,
        layout: BlockLayout,
        sums: Mapping[str, Tensor],
        parameters: Shapes,
        factors: Factors,
    ):
        self.layout, self.sums, self.factors = layout, sums, factors
        self.view = self.view_of(layout, parameters)
        self.dtype = sums[self.keys(layout, sums)[0]].dtype

    @staticmethod
    @abstractmethod
    def view_of(layout: BlockLayout, parameters: Shapes) -> View:
        """How a block sees its parameters."""

    @staticmethod
    @abstractmethod
    def keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """Keys of the sums that a block reads, in canonical order."""

    @staticmethod
    def basis_keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """Those of :meth:`keys` that hold a basis, which sums of examples must share.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The keys; none unless the kind says otherwise.
        """
        return []

    @classmethod
    @abstractmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Raise ParameterError unless the sums have the shapes that the block needs."""

    @abstractmethod
    def means(self, denominator: float) -> dict[str, Tensor]:
        """The kept numbers as means, in new tensors."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal, in the shape of the view."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """The product of the block with vectors."""

    @abstractmethod
    def spectrum(self) -> Tensor:
        """The eigenvalues, in the shape of the view."""

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """The diagonal of ``Q diag(values) Q^T``, values and result in the view's shape."""

    @abstractmethod
    def nullity(self) -> int:
        """Number of eigenvalues that are zero up to the rounding of the stored sums."""

    @abstractmethod
    def rotate(self, x: Tensor) -> Tensor:
        """Vectors to coordinates along the eigenvectors."""

    @abstractmethod
    def unrotate(self, x: Tensor) -> Tensor:
        """Undo :meth:`rotate`."""

    @abstractmethod
    def inner(self, other: BlockMatrix) -> float:
        """The Frobenius inner product with another block of the same layout."""

    @abstractmethod
    def fidelity(self, other: BlockMatrix) -> float:
        """The fidelity ``tr (A^(1/2) B A^(1/2))^(1/2)`` with another block of the same layout."""

    def eigenvector(self, index: int) -> Tensor:
        """The eigenvector of one entry of :meth:`spectrum`.

        Args:
            index: Number of the entry, row-major.

        Returns:
            float64, in the shape of the view, of unit norm up to the rounding of the sums.
        """
        one = torch.zeros(self.view.shape, dtype=torch.float64)
        one.view(-1)[index] = 1
        return self.unrotate(one)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal vectors.

        Args:
            n: How many.
            generator: Where they come from.

        Returns:
            float64 ``[n, *view.shape]``.
        """
        return torch.randn(n, *self.view.shape, generator=generator, dtype=torch.float64)
