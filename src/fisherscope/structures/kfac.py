"""The Kronecker-factored Fisher."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fisherscope.structures.blocks import KroneckerBlock
from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.layout import Kind


class KFACFisher(BlockwiseFisher):
    r"""One Kronecker product per layer, diagonals elsewhere.

    The block of a layer is :math:`G \otimes A / R` with :math:`G = \sum g g^T` over output
    gradients and :math:`A = \sum a a^T` over R rows of inputs: the expectation of a product
    taken for a product of expectations. Exact for one datum, for deep linear networks with
    squared error, and where inputs are constant. Source: Martens and Grosse (2015).
    """

    structure: ClassVar[str] = "kfac"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"kronecker", "diagonal"})

    def eigenbasis(self) -> dict[str, Tensor]:
        """The factors' eigenvectors, in which an EKFAC fits its eigenvalues.

        Returns:
            New tensors of the factors' type, eigenvectors in the columns: the sums of an
            :class:`EKFACFisher` without the eigenvalues. Shared factors occur once.
        """
        found: dict[str, Tensor] = {}
        for block in self.blocks:
            if isinstance(block, KroneckerBlock):
                found |= block.eigenvectors()
        return found
