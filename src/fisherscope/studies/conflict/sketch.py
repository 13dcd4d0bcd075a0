"""How per-example gradients are kept: whole, or as a sketch that preserves inner products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherscope.arguments import size_in_bytes
from fisherscope.errors import ParameterError

_BYTES = 4
# Bucket (int32) and sign (int8) of every parameter that is sketched.
_CODE_BYTES = 5
# With fewer columns a single tensor adds more than an eighth of |x||y| to an inner product.
_LEAST = 64


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    r"""How many columns each tensor's rows have, and what that costs in memory and in noise.

    A tensor with as many columns as parameters is kept whole. Another one is a CountSketch
    (Charikar, Chen, Farach-Colton, 2002): every parameter is added, with a random sign, to one
    of K random columns. Its inner products are unbiased with variance :math:`(\|x\|^2 \|y\|^2
    + \langle x,y\rangle^2 - 2\sum_i x_i^2 y_i^2) / K` (Weinberger et al., 2009), of which the
    last term is left out here: an upper bound.

    Attributes:
        sizes: Tensor to its number of parameters.
        widths: Tensor to its number of columns.
        n_rows: Number of examples of all tasks together.
        bytes: Memory of rows and hash codes.
        limit: Memory allowed.
    """

    sizes: dict[str, int]
    widths: dict[str, int]
    n_rows: int
    bytes: int
    limit: int

    @property
    def exact(self) -> bool:
        """Whether every tensor is kept whole."""
        return self.sizes == self.widths

    def sketched(self, name: str) -> bool:
        """Whether a tensor is kept as a sketch.

        Args:
            name: The tensor.

        Returns:
            False where it is kept whole.
        """
        return self.widths[name] < self.sizes[name]

    @property
    def relative_sd(self) -> float:
        r"""Largest standard deviation that a sketch adds to :math:`\langle x,y\rangle / |x||y|`.

        For orthogonal x and y, tensor by tensor; 0 where nothing is sketched.
        """
        widths = [k for name, k in self.widths.items() if self.sketched(name)]
        return min(widths) ** -0.5 if widths else 0.0

    def describe(self) -> str:
        """The plan in one sentence.

        Returns:
            Plain text.
        """
        if self.exact:
            return f"exact rows of {self.n_rows} examples, {self.bytes:,} bytes"
        count = sum(map(self.sketched, self.sizes))
        return (
            f"{count} of {len(self.sizes)} tensors as sketches of {max(self.widths.values()):,} "
            f"columns, the others exact; {self.n_rows} examples, {self.bytes:,} bytes; a sketch "
            f"adds {self.relative_sd:.2g} |x||y| (standard deviation) to an inner product"
        )


def plan_rows(
    sizes: Mapping[str, int], n_rows: int, memory_limit: int | str, *, copies: int = 2
) -> RowPlan:
    """Whole rows where they fit; otherwise sketches of one width for all large tensors.

    Args:
        sizes: Tensor to number of parameters.
        n_rows: Number of examples.
        memory_limit: Bytes, or text such as ``"2GB"``.
        copies: How many metrics keep a sketch of their own; whole rows are shared. Default: 2.

    Returns:
        The plan.

    Raises:
        ParameterError: If the limit is no size, or too small for useful sketches.
    """
    limit = size_in_bytes("memory_limit", memory_limit) or 0
    whole = n_rows * sum(sizes.values()) * _BYTES
    if whole <= limit:
        return RowPlan(
            sizes=dict(sizes), widths=dict(sizes), n_rows=n_rows, bytes=whole, limit=limit
        )

    def cost(width: int) -> int:
        columns = sum(min(size, width) for size in sizes.values())
        codes = sum(size for size in sizes.values() if size > width)
        return copies * n_rows * columns * _BYTES + codes * _CODE_BYTES

    if cost(_LEAST) > limit:
        raise ParameterError(
            f"memory_limit={memory_limit!r} is too small: gradients of {n_rows} examples take "
            f"{whole:,} bytes whole and {cost(_LEAST):,} as the smallest useful sketches; raise "
            "it, or use fewer examples (max_examples=) or parameters (parameters=)"
        )
    low, high = _LEAST, max(sizes.values())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return RowPlan(
        sizes=dict(sizes),
        widths={name: min(size, low) for name, size in sizes.items()},
        n_rows=n_rows,
        bytes=cost(low),
        limit=limit,
    )


class CountSketch:
    """Sums of randomly signed coordinates in random columns; linear, so uses add up.

    Args:
        size: Number of coordinates.
        width: Number of columns.
        seed: Seed; one sketch must serve all rows that are compared.
        device: Where the rows are.
    """

    def __init__(self, size: int, width: int, seed: int, device: torch.device):
        generator = torch.Generator().manual_seed(seed)
        self.column = torch.randint(width, (size,), generator=generator, dtype=torch.int32)
        self.sign = torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
        self.column, self.sign = self.column.to(device), self.sign.to(device)

    def add(self, rows: Tensor, into: Tensor) -> None:
        """Add sketches of rows.

        Args:
            rows: [n, size].
            into: [n, width], changed in place.
        """
        into.index_add_(1, self.column, (rows * self.sign).to(into.dtype))
