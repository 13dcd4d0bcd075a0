"""The Kronecker-factored Fisher."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fisherscope.structures.blocks import KroneckerBlock
from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.factors import Factor
from fisherscope.structures.layout import Kind


class KFACFisher(BlockwiseFisher):
    r"""One Kronecker product per layer, diagonals elsewhere.

    The block of a layer is :math:`G \otimes A / R` with :math:`G = \sum g g^T` over output
    gradients and :math:`A = \sum a a^T` over R rows of inputs: the expectation of a product
    taken for a product of expectations. Exact for one datum, for deep linear networks with
    squared error, and where inputs are constant. Source: Martens and Grosse (2015).
    """

    structure: ClassVar[str] = "kfac"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"kronecker", "dense", "diagonal"})

    @cached_property
    def factors(self) -> dict[str, Factor]:
        """Name to factor, shared ones once."""
        blocks = [block for block in self.blocks if isinstance(block, KroneckerBlock)]
        return {factor.name: factor for block in blocks for factor in block.pair()}

    @cached_property
    def eigenvectors(self) -> dict[str, list[Tensor]]:
        """Name of a factor to its eigenvectors, of those decomposed so far (or read: add them)."""
        return {}

    def eigenbasis(self) -> dict[str, Tensor]:
        """The factors' eigenvectors, in which an EKFAC fits its eigenvalues.

        Returns:
            Tensors of the factors' type, eigenvectors in the columns: the sums of an
            :class:`EKFACFisher` without the eigenvalues. Shared factors occur once; whoever
            asks again gets the same tensors.
        """
        found: dict[str, Tensor] = {}
        for name, factor in self.factors.items():
            if name not in self.eigenvectors:
                self.eigenvectors[name] = factor.eigenvectors()
            found |= {f"{name}.{i}": v for i, v in enumerate(self.eigenvectors[name])}
        return found
