"""Factors of Kronecker blocks: block-diagonal matrices of one or a few pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fisherscope.structures.eigen import Eigen, fidelity, symmetric_eigen
from fisherscope.structures.vectors import total


@dataclass(frozen=True, eq=False)
class BlockDiagonal:
    """A square matrix that is zero outside of its diagonal pieces.

    Products are in float64 whatever the pieces are stored in.

    Attributes:
        pieces: Square matrices, in the order of the dimension.
    """

    pieces: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def T(self) -> BlockDiagonal:
        """The transpose."""
        return BlockDiagonal(tuple(piece.T for piece in self.pieces))

    def diagonal(self) -> Tensor:
        """The diagonal.

        Returns:
            float64 ``[n]``.
        """
        return torch.cat([piece.diagonal().double() for piece in self.pieces])

    def column(self, index: int) -> Tensor:
        """One column.

        Args:
            index: Which.

        Returns:
            float64 ``[n]``.
        """
        found = torch.zeros(len(self), dtype=torch.float64)
        start = 0
        for piece in self.pieces:
            if start <= index < start + len(piece):
                found[start : start + len(piece)] = piece[:, index - start].double()
            start += len(piece)
        return found

    def square(self) -> BlockDiagonal:
        """The elementwise square.

        Returns:
            Another matrix, in float64.
        """
        return BlockDiagonal(tuple(piece.double().square() for piece in self.pieces))

    def after(self, m: Tensor) -> Tensor:
        """The product ``D m``.

        Args:
            m: ``[..., n, k]``.

        Returns:
            float64 ``[..., n, k]``.
        """
        return self._each(m.double(), -2, lambda piece, part: piece @ part)

    def before(self, m: Tensor) -> Tensor:
        """The product ``m D``.

        Args:
            m: ``[..., k, n]``.

        Returns:
            float64 ``[..., k, n]``.
        """
        return self._each(m.double(), -1, lambda piece, part: part @ piece)

    def times(self, other: BlockDiagonal) -> BlockDiagonal:
        """The product with a matrix of the same pieces.

        Args:
            other: The right factor.

        Returns:
            A float64 matrix of the same pieces.
        """
        pairs = zip(self.pieces, other.pieces, strict=True)
        return BlockDiagonal(tuple(mine.double() @ theirs.double() for mine, theirs in pairs))

    def inner(self, other: BlockDiagonal) -> float:
        """The Frobenius inner product with a matrix of the same pieces.

        Args:
            other: The other matrix.

        Returns:
            The sum over elements of the product.
        """
        return sum(total(a, b) for a, b in zip(self.pieces, other.pieces, strict=True))

    def _each(self, m: Tensor, dim: int, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if len(self.pieces) == 1:
            return product(self.pieces[0].double(), m)
        parts = m.split([len(piece) for piece in self.pieces], dim)
        pairs = zip(self.pieces, parts, strict=True)
        return torch.cat([product(piece.double(), part) for piece, part in pairs], dim)


@dataclass(frozen=True, eq=False)
class Factor(BlockDiagonal):
    """A sum of outer products, decomposed once.

    Attributes:
        name: Key of the sums, for messages.
    """

    name: str = ""

    @cached_property
    def _eigen(self) -> list[Eigen]:
        return [symmetric_eigen(p, f"{self.name}.{i}") for i, p in enumerate(self.pieces)]

    @property
    def values(self) -> Tensor:
        """Eigenvalues, float64 ``[n]``, ascending within each piece."""
        return torch.cat([eigen.values for eigen in self._eigen])

    @property
    def vectors(self) -> BlockDiagonal:
        """Eigenvectors, the columns of a float64 matrix of the same pieces."""
        return BlockDiagonal(tuple(eigen.vectors for eigen in self._eigen))

    def eigenvectors(self) -> list[Tensor]:
        """The same in the type of the sums.

        Returns:
            New tensors, one per piece, eigenvectors in the columns.
        """
        # LAPACK's are column-major, a file's are not, and products round by the layout.
        contiguous = torch.contiguous_format
        pairs = zip(self._eigen, self.pieces, strict=True)
        return [
            eigen.vectors.to(piece.dtype, memory_format=contiguous, copy=True)
            for eigen, piece in pairs
        ]

    def fidelity(self, other: Factor) -> float:
        """The fidelity with a factor of the same pieces, see :func:`eigen.fidelity`.

        Args:
            other: The other factor.

        Returns:
            The sum over pieces.
        """
        return sum(fidelity(a, b) for a, b in zip(self._eigen, other._eigen, strict=True))

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the rounding of the stored sums."""
        return sum(eigen.rank for eigen in self._eigen)


class Factors:
    """All factors of a Fisher by their key without the number, each decomposed once.

    Args:
        sums: The Fisher's sums.
    """

    def __init__(self, sums: Mapping[str, Tensor]):
        self._sums = sums
        self._made: dict[str, Factor] = {}

    def __getitem__(self, prefix: str) -> Factor:
        if prefix not in self._made:
            pieces = tuple(self._sums[key] for key in piece_keys(prefix, self._sums))
            self._made[prefix] = Factor(pieces, prefix)
        return self._made[prefix]


def piece_keys(prefix: str, keys: Mapping[str, Tensor]) -> list[str]:
    """Keys of a factor's diagonal pieces.

    Args:
        prefix: Key without the number.
        keys: What there is.

    Returns:
        Consecutive keys from ``{prefix}.0`` on; that one also if it is missing.
    """
    found = [f"{prefix}.0"]
    while (key := f"{prefix}.{len(found)}") in keys:
        found.append(key)
    return found


def check_pieces(keys: Sequence[str], sums: Mapping[str, Tensor], size: int) -> str:
    """What is wrong with a factor's pieces.

    Args:
        keys: Keys of the pieces.
        sums: The tensors.
        size: What the pieces must add up to.

    Returns:
        A message, or the empty string.
    """
    shapes = [tuple(sums[key].shape) for key in keys]
    square = all(len(shape) == 2 and shape[0] == shape[1] for shape in shapes)
    if square and sum(shape[0] for shape in shapes) == size:
        return ""
    return (
        f"sums[{keys[0]!r}]{' and following have' * (len(keys) > 1) or ' has'} shape "
        f"{', '.join(map(str, shapes))}, but the factor's square pieces must add up to {size}"
    )
