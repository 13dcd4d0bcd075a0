"""The Fishers of all models, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherscope.structures import BlockLayout, BlockwiseFisher, Fisher, GroupedFisher
from fisherscope.structures.blocks import BlockMatrix, DiagonalBlock
from fisherscope.structures.blocks.views import View
from fisherscope.structures.factors import Factors


@dataclass(frozen=True)
class Term:
    """One model's block of the quadratic that a merge minimises.

    Attributes:
        block: The block, as sums.
        scale: What makes a mean per unit of it.
        weight: Weight of the model, divided by the norm of its Fisher if normalised.
        floor: Added to the diagonal of the mean per unit.
    """

    block: BlockMatrix
    scale: float
    weight: float
    floor: float

    def cost(self, x: Tensor) -> Tensor:
        """Half the quadratic form of a displacement, element by element.

        Args:
            x: float64, in the block's view.

        Returns:
            Of the same shape; it sums to ``x^T F x / 2`` with the mean per unit, no floor.
        """
        return 0.5 * self.scale * x * self.block.multiply(x).double()

    def spectrum(self) -> Tensor:
        """Eigenvalues of the weighted block with its floor.

        Returns:
            float64, in the block's view, at least 0.
        """
        return self.weight * (self.scale * self.block.spectrum().double() + self.floor)

    def product(self, x: Tensor) -> Tensor:
        """The weighted block with its floor times a vector.

        Through the eigenvectors: so it stays positive semi-definite where the rounding of the
        stored sums would not.

        Args:
            x: float64, in the block's view.

        Returns:
            Of the same shape.
        """
        return self.block.unrotate(self.spectrum() * self.block.rotate(x))

    def diagonal(self) -> Tensor:
        """The diagonal of the weighted block with its floor.

        Returns:
            float64, in the block's view.
        """
        return self.weight * (self.scale * self.block.diagonal().double() + self.floor)


@dataclass(frozen=True)
class Group:
    """Parameters that are merged together.

    Attributes:
        names: The parameters.
        view: How they become one tensor.
        terms: One per model.
    """

    names: tuple[str, ...]
    view: View
    terms: tuple[Term, ...]


def groups(
    fishers: Sequence[Fisher], weights: Sequence[float], *, normalize: bool, floor: float
) -> list[Group]:
    """The blocks of several Fishers side by side.

    Args:
        fishers: Fishers of one structure with the same blocks.
        weights: The models' weights.
        normalize: Divide each weight by the Frobenius norm of its Fisher.
        floor: Fraction of each Fisher's mean diagonal that is added to its diagonal.

    Returns:
        One group per block.
    """
    columns = []
    for fisher, weight in zip(fishers, weights, strict=True):
        norm = math.sqrt(fisher.inner(fisher)) if normalize else 1.0
        # A Fisher that is zero everywhere has no say, whatever its weight.
        weight = weight / norm if norm > 0 else 0.0
        level = floor * fisher.trace() / fisher.n_parameters
        scale = 1 / fisher.denominator()
        columns.append([Term(block, scale, weight, level) for block in _blocks(fisher)])
    return [
        Group(tuple(terms[0].block.view.shapes), terms[0].block.view, terms)
        for terms in zip(*columns, strict=True)
    ]


def _blocks(fisher: Fisher) -> tuple[BlockMatrix, ...]:
    if isinstance(fisher, BlockwiseFisher):
        return fisher.blocks
    sums: Mapping[str, Tensor] = fisher.sums
    shapes = fisher.identity.parameters
    if isinstance(fisher, GroupedFisher):
        sums = {
            name: (tensor * (tensor.numel() / max(math.prod(shapes[name]), 1))).expand(shapes[name])
            for name, tensor in fisher.sums.items()
        }
    return tuple(
        DiagonalBlock(BlockLayout("diagonal", (name,)), sums, shapes, Factors(sums))
        for name in shapes
    )


def weighted_mean(
    values: Sequence[Tensor], weights: Sequence[Tensor], fallback: Tensor
) -> tuple[Tensor, int]:
    """Elementwise weighted mean, which never divides by zero.

    Args:
        values: One tensor per model.
        weights: Weights of at least 0, in the same shapes.
        fallback: What an element is where all of its weights are 0.

    Returns:
        The mean, and the number of elements that fell back.
    """
    largest = torch.stack(list(weights)).amax(0)
    known = largest > 0
    # Relative to the largest, so that neither tiny nor huge weights leave the range of floats.
    shares = [torch.where(known, weight / largest, 0.0) for weight in weights]
    total = torch.where(known, sum(shares, torch.zeros_like(largest)), 1.0)
    moved = sum(
        (s * (v - fallback) for s, v in zip(shares, values, strict=True)),
        torch.zeros_like(fallback),
    )
    return fallback + moved / total, int((~known).sum())
