"""Quadratic forms of Fishers, piece by piece, so that no second model has to exist."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures import Fisher, GroupedFisher
from fisherscope.structures.blocks import BlockMatrix
from fisherscope.structures.factors import Factors
from fisherscope.structures.fisher import Per
from fisherscope.structures.layout import BlockLayout


@dataclass(frozen=True, eq=False)
class Piece:
    """Parameters that are multiplied together.

    Attributes:
        names: The parameters.
        keys: Keys of the kept tensors.
        reads: What a block calls them.
        scale: What the product is multiplied by.
        layout: The block; ``None`` for a factor per element.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    reads: tuple[str, ...] = ()
    scale: float = 1.0
    layout: BlockLayout | None = None

    def multiply(
        self, v: Mapping[str, Tensor], kept: Mapping[str, Tensor], shapes: Mapping[str, tuple]
    ) -> dict[str, Tensor]:
        """The product of the matrix with a vector.

        Args:
            v: Name to tensor; absent ones count as zero.
            kept: The kept tensors.
            shapes: Shapes of all parameters.

        Returns:
            Names of ``v`` to new tensors on the same device.
        """
        device = next(iter(v.values())).device
        if self.layout is None:
            return {
                n: kept[k].to(device) * v[n] for n, k in zip(self.names, self.keys, strict=True)
            }
        sums = {r: kept[k].to(device) for r, k in zip(self.reads, self.keys, strict=True)}
        block = BlockMatrix.registry[self.layout.kind](self.layout, sums, shapes, Factors(sums))
        example = next(iter(v.values()))
        filled = {n: v[n] if n in v else example.new_zeros(shapes[n]) for n in block.view.shapes}
        product = block.multiply(block.view.join(filled)) * self.scale
        return {n: t.to(v[n].dtype) for n, t in block.view.split(product).items() if n in v}


@dataclass(frozen=True, eq=False)
class Form:
    """A matrix over parameters.

    Attributes:
        pieces: What it is made of.
        tensors: Their numbers.
        shapes: Shapes of all parameters.
    """

    pieces: tuple[Piece, ...]
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]


def form_of(fisher: Fisher, per: Per, names: Collection[str], dtype: torch.dtype | None) -> Form:
    """What is needed of a Fisher to multiply with it.

    Args:
        fisher: The Fisher.
        per: What its matrix is the mean per.
        names: Parameters that can move; blocks without one are left out.
        dtype: Type to keep numbers in; ``None`` keeps that of the sums.

    Returns:
        The form.

    Raises:
        ParameterError: If matrices are to be kept in half precision.
    """
    denominator, shapes = fisher.denominator(per), fisher.identity.parameters
    if not fisher.layout:
        tensors = {}
        for name in (n for n in shapes if n in names):
            size = 1
            if isinstance(fisher, GroupedFisher):
                size = max(1, torch.Size(shapes[name]).numel() // fisher.sums[name].numel())
            tensors[name] = (fisher.sums[name] / (denominator * size)).to(dtype)
        return Form(tuple(Piece((name,), (name,)) for name in tensors), tensors, shapes)
    if dtype is not None and torch.finfo(dtype).bits < 32:
        raise ParameterError(
            f"dtype={dtype} is for diagonal and grouped Fishers: the matrices of "
            f"{fisher.identity.structure!r} would no longer be positive semi-definite. Leave "
            'dtype out, with storage="cpu" or "disk" if memory is short.'
        )
    pieces, sums = [], {}
    for layout in fisher.layout:
        if not any(name in names for name in layout.names):
            continue
        keys = tuple(BlockMatrix.registry[layout.kind].keys(layout, fisher.sums))
        pieces.append(Piece(layout.names, keys, keys, 1 / denominator, layout))
        for key in keys:
            counts = key.endswith(":rows")
            sums[key] = fisher.sums[key] if counts or dtype is None else fisher.sums[key].to(dtype)
    return Form(tuple(pieces), sums, shapes)


def combined(forms: Sequence[Form], weights: Sequence[float]) -> Form:
    """The weighted sum of forms: one set of numbers per element where there are no blocks.

    Args:
        forms: Forms over the same model.
        weights: One each.

    Returns:
        The sum. Blocks are kept side by side, because sums of Kronecker products are none.
    """
    if len(forms) == 1 and weights[0] == 1:
        return forms[0]
    shapes = {name: shape for form in forms for name, shape in form.shapes.items()}
    pieces: list[Piece] = []
    tensors: dict[str, Tensor] = {}
    for number, (form, weight) in enumerate(zip(forms, weights, strict=True)):
        for piece in form.pieces:
            if piece.layout is not None:
                keys = tuple(f"{number}/{key}" for key in piece.keys)
                pieces.append(replace(piece, keys=keys, scale=piece.scale * weight))
                pairs = zip(piece.keys, keys, strict=True)
                tensors |= {new: form.tensors[old] for old, new in pairs}
                continue
            (key,) = piece.keys
            kept = form.tensors[key]
            share = kept.to(torch.promote_types(kept.dtype, torch.float32)) * weight
            if key in tensors:
                tensors[key] = (tensors[key] + share).to(kept.dtype)
            else:
                pieces.append(piece)
                tensors[key] = share.to(kept.dtype)
    return Form(tuple(pieces), tensors, shapes)
