"""Fitted eigenvalues in a Kronecker-factored eigenbasis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures.blocks.block import BlockMatrix
from fisherscope.structures.blocks.kronecker import FactoredBlock, factor_prefixes
from fisherscope.structures.blocks.views import Shapes
from fisherscope.structures.factors import piece_keys
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.vectors import total


class EigenBlock(FactoredBlock):
    r"""The matrix :math:`Q \,\mathrm{diag}(\mathrm{vec} \Lambda) Q^T`, :math:`Q = Q_G \otimes Q_A`.

    Source: George et al. (2018).
    """

    kind: ClassVar[str] = "eigen"

    @staticmethod
    def keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """The eigenvalues and both factors' eigenvectors.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The keys.
        """
        return [f"{layout.names[0]}:eigenvalues", *EigenBlock.basis_keys(layout, sums)]

    @staticmethod
    def basis_keys(layout: BlockLayout, sums: Mapping[str, Tensor]) -> list[str]:
        """Both factors' eigenvectors.

        Args:
            layout: The block.
            sums: The Fisher's sums.

        Returns:
            The keys.
        """
        return [key for prefix in factor_prefixes(layout) for key in piece_keys(prefix, sums)]

    @classmethod
    def check(cls, layout: BlockLayout, sums: Mapping[str, Tensor], parameters: Shapes) -> None:
        """Compare eigenvectors and eigenvalues with the matrix view.

        Args:
            layout: The block.
            sums: The Fisher's sums.
            parameters: Names and shapes.

        Raises:
            ParameterError: If one doesn't fit.
        """
        super().check(layout, sums, parameters)
        key, shape = f"{layout.names[0]}:eigenvalues", cls.view_of(layout, parameters).shape
        if tuple(sums[key].shape) != shape:
            raise ParameterError(
                f"sums[{key!r}] has shape {tuple(sums[key].shape)}, but the block {layout} has "
                f"{shape}."
            )

    @cached_property
    def _bases(self):
        gradients, inputs = factor_prefixes(self.layout)
        return self.factors[gradients], self.factors[inputs]

    @property
    def _values(self) -> Tensor:
        return self.sums[f"{self.layout.names[0]}:eigenvalues"]

    def means(self, denominator: float) -> dict[str, Tensor]:
        """The eigenvalues, divided, and the eigenvectors.

        Args:
            denominator: What to divide by.

        Returns:
            Key to new tensor.
        """
        values = {f"{self.layout.names[0]}:eigenvalues": self._values / denominator}
        basis = self.basis_keys(self.layout, self.sums)
        return values | {key: self.sums[key].clone() for key in basis}

    def diagonal(self) -> Tensor:
        r"""The diagonal :math:`Q_G^{\circ 2} \Lambda (Q_A^{\circ 2})^T`.

        Returns:
            float64 ``[out, in]``.
        """
        return self.spread(self._values)

    def multiply(self, x: Tensor) -> Tensor:
        """The product with vectors.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        return self.unrotate(self.rotate(x) * self._values)

    def spectrum(self) -> Tensor:
        """The fitted eigenvalues.

        Returns:
            ``[out, in]``.
        """
        return self._values

    def spread(self, values: Tensor) -> Tensor:
        """The diagonal of the matrix with other eigenvalues.

        Args:
            values: ``[out, in]``.

        Returns:
            float64 ``[out, in]``.
        """
        gradients, inputs = self._bases
        return inputs.square().T.before(gradients.square().after(values))

    def nullity(self) -> int:
        """Eigenvalues that a rotation of zero would leave.

        Returns:
            The count of those below ``p * eps**2`` times the largest: they are squares of
            rotated scores, so rounding enters squared.
        """
        values = self._values
        eps = torch.finfo(values.dtype).eps
        return int((values <= values.numel() * eps**2 * values.max()).sum())

    def rotate(self, x: Tensor) -> Tensor:
        """Coordinates along the eigenvectors.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        gradients, inputs = self._bases
        return inputs.before(gradients.T.after(x))

    def unrotate(self, x: Tensor) -> Tensor:
        """Undo :meth:`rotate`.

        Args:
            x: ``[..., out, in]``.

        Returns:
            float64 ``[..., out, in]``.
        """
        gradients, inputs = self._bases
        return inputs.T.before(gradients.after(x))

    def inner(self, other: BlockMatrix) -> float:
        r"""The Frobenius inner product, also between different bases.

        With :math:`U = Q^T Q'` of each factor it is
        :math:`\langle \Lambda, U_G^{\circ 2} \Lambda' (U_A^{\circ 2})^T \rangle`.

        Args:
            other: A block of the same layout.

        Returns:
            The inner product.
        """
        theirs = cast(Self, other)
        gradients, inputs = (
            a.T.times(b).square() for a, b in zip(self._bases, theirs._bases, strict=True)
        )
        return total(self._values, inputs.T.before(gradients.after(theirs._values)))

    def fidelity(self, other: BlockMatrix) -> float:
        """The sum of the roots of the products of eigenvalues, in one basis only.

        Args:
            other: A block of the same layout with the same eigenvectors.

        Returns:
            The fidelity.

        Raises:
            IdentityError: If the eigenvectors differ: no formula by factors is known then.
        """
        theirs = cast(Self, other)
        for key in self.basis_keys(self.layout, self.sums):
            if not torch.equal(self.sums[key], theirs.sums[key]):
                raise IdentityError(
                    f"the fidelity of EKFAC blocks needs equal eigenvectors, but {key!r} differ. "
                    "Estimate both in one basis: pass basis=, a KFAC."
                )
        return total(self._values.double().sqrt(), theirs._values.double().sqrt())

    def eigenvector(self, index: int) -> Tensor:
        """The outer product of an eigenvector of each factor.

        Args:
            index: Number of the entry of the spectrum, row-major.

        Returns:
            float64 ``[out, in]``.
        """
        output, input_ = divmod(index, self.view.shape[1])
        gradients, inputs = self._bases
        return torch.outer(gradients.column(output), inputs.column(input_))
