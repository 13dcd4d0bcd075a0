"""The score of one parameter over a batch, in the form in which a layer delivers it.

A score class knows how to add its per-example squares to a sum, without ever holding a
dense per-example gradient for the whole batch. Every method that adds to ``total`` returns
the matching squared norm of each example, from which the ledger is made.

Shapes: ``batch`` examples, ``shared`` positions of an example that use the same parameter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherscope.engine import contraction
from fisherscope.engine.contraction import at_least_fp32 as fp32


class Score(ABC):
    """Per-example derivatives of the summed loss with respect to one parameter."""

    kind: str

    @abstractmethod
    def squares(self, total: Tensor) -> Tensor:
        """Add ``Σ_n G_n²`` to ``total`` (parameter's shape); return ``‖G_n‖²`` [batch]."""

    @abstractmethod
    def row_squares(self, total: Tensor) -> Tensor:
        """Add the squares summed over each group to ``total``; return ``‖G_n‖²`` [batch].

        ``total`` has the parameter's dimensions, with size 1 along those summed over.
        """

    @abstractmethod
    def position_squares(self, total: Tensor) -> Tensor:
        """Like :meth:`squares` or :meth:`row_squares`, every position its own unit."""

    @abstractmethod
    def inner(self, delta: Tensor) -> Tensor:
        """``⟨G_n, Δ⟩`` for each example [batch]; ``delta`` has the parameter's shape."""

    @abstractmethod
    def add(self, total: Tensor, weights: Tensor | None = None) -> None:
        """Add ``Σ_n w_n G_n`` to ``total`` (parameter's shape); weights [batch], default 1."""

    @abstractmethod
    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:
        """``G_n`` of some examples of the batch [examples, *shape], fp32 or better."""

    def inners(self, deltas: Sequence[Tensor]) -> Tensor:
        """:meth:`inner` of several directions [directions, batch]."""
        return torch.stack([self.inner(delta) for delta in deltas])

    def inner_along(self, delta: Tensor, dim: int) -> Tensor:
        """``⟨G_n, Δ⟩`` split into its parts along one dimension of the parameter.

        Args:
            delta: In the parameter's shape.
            dim: Which dimension, 0 or 1.

        Returns:
            [batch, size of that dimension], which sums to :meth:`inner`.
        """
        products = self.dense(slice(None), delta.shape) * fp32(delta)
        return products.movedim(dim + 1, 1).flatten(2).sum(2) if delta.ndim > 1 else products

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The two sides of ``G_n = g_nᵀ a_n``, with ``G_n`` seen as a matrix [out, in].

        A convolution's is that of ``weight.reshape(out, -1)``; a weight stored as [in, out] is
        turned over.

        Returns:
            ``g`` [batch, shared, out] and ``a`` [batch, shared, in], or ``None`` if the score
            has no such form.
        """
        return None

    def merge(self, other: Score) -> Score | None:
        """The score of both uses of one parameter together, or ``None`` if not expressible."""
        del other
        return None


def _padded(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)


def weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """Multiply each example by its weight.

    Args:
        x: [batch, ...].
        weights: [batch], or ``None`` for ones.

    Returns:
        ``x`` itself or a new tensor, fp32 or better.
    """
    if weights is None:
        return x
    x = fp32(x)
    return x * weights.to(x).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class MatrixScore(Score):
    """A matrix used as ``a Wᵀ`` (or ``a W`` when stored transposed): ``G_n = g_nᵀ a_n``."""

    g: Tensor  # [batch, shared, out]
    a: Tensor  # [batch, shared, in]
    transposed: bool = False
    kind = "matrix"

    def _stored(self) -> tuple[Tensor, Tensor]:
        return (self.a, self.g) if self.transposed else (self.g, self.a)

    def squares(self, total: Tensor) -> Tensor:  # noqa: D102
        return contraction.add_squares(*self._stored(), total)

    def row_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        return contraction.add_row_squares(self.g, self.a, total.view(-1))

    def position_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        if total.numel() != self.g.shape[2] * self.a.shape[2]:
            g2, a2 = fp32(self.g).square(), fp32(self.a).square().sum(2, keepdim=True)
            per_row = (g2 * a2).sum(1)
            total.view(-1).add_(per_row.sum(0))
            return per_row.sum(1)
        return contraction.add_position_squares(*self._stored(), total)

    def inner(self, delta: Tensor) -> Tensor:  # noqa: D102
        return contraction.inner(*self._stored(), delta)

    def inners(self, deltas: Sequence[Tensor]) -> Tensor:  # noqa: D102
        return contraction.inners(*self._stored(), deltas)

    def inner_along(self, delta: Tensor, dim: int) -> Tensor:  # noqa: D102
        g, a = (fp32(x) for x in self._stored())
        delta = delta.to(g)
        return (a * (g @ delta)).sum(1) if dim else (g * (a @ delta.t())).sum(1)

    def add(self, total: Tensor, weights: Tensor | None = None) -> None:  # noqa: D102
        g, a = self._stored()
        g = weighted(g, weights)
        total.addmm_(g.flatten(0, 1).t().to(total.dtype), a.flatten(0, 1).to(total.dtype))

    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:  # noqa: D102
        g, a = self._stored()
        return torch.bmm(fp32(g[rows]).transpose(1, 2), fp32(a[rows])).reshape(-1, *shape)

    def factors(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.g, self.a

    def merge(self, other: Score) -> Score | None:  # noqa: D102
        if not isinstance(other, MatrixScore) or other.transposed != self.transposed:
            return None
        return MatrixScore(_padded([self.g, other.g]), _padded([self.a, other.a]), self.transposed)


@dataclass(frozen=True)
class EmbeddingScore(Score):
    """Rows of a table looked up by id; nonzero only on the ids that occur in the example.

    With ``cross`` (rows of the output head's ``H_n`` at the looked-up ids, see
    :func:`cross_rows`) it delivers what a tied head adds to ``H_n²``:
    ``(S + H)² − H² = S² + 2SH``.
    """

    ids: Tensor  # [batch, shared]
    g: Tensor  # [batch, shared, features]
    cross: Tensor | None = None  # [unique (example, id) pairs in sorted order, features]
    kind = "embedding"

    def _segments(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Unique (example, id) pairs: example, id, summed gradient, head rows."""
        batch = self.ids.shape[0]
        offset = torch.arange(batch, device=self.ids.device).unsqueeze(1) * rows
        keys, inverse = torch.unique((self.ids + offset).flatten(), return_inverse=True)
        g = self.g.flatten(0, 1)
        g = fp32(g)
        summed = torch.zeros((keys.numel(), g.shape[1]), dtype=g.dtype, device=g.device)
        summed.index_add_(0, inverse, g)
        cross = None
        if self.cross is not None:
            cross = self.cross.to(g.dtype)
        return keys // rows, keys % rows, summed, cross

    def _squared_segments(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        example, token, summed, cross = self._segments(rows)
        squared = summed.square() if cross is None else summed * (summed + 2 * cross)
        return example, token, squared

    def _norms(self, example: Tensor, per_segment: Tensor) -> Tensor:
        return per_segment.new_zeros(self.ids.shape[0]).index_add_(0, example, per_segment)

    def squares(self, total: Tensor) -> Tensor:  # noqa: D102
        example, token, squared = self._squared_segments(total.shape[0])
        total.index_add_(0, token, squared.to(total.dtype))
        return self._norms(example, squared.sum(1))

    def row_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        example, token, squared = self._squared_segments(total.shape[0])
        total.view(-1).index_add_(0, token, squared.sum(1).to(total.dtype))
        return self._norms(example, squared.sum(1))

    def position_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        squared = fp32(self.g).square()
        rows = squared.sum(2, keepdim=True) if total.shape[1] == 1 else squared
        total.index_add_(0, self.ids.flatten(), rows.flatten(0, 1).to(total.dtype))
        return squared.sum((1, 2))

    def inner(self, delta: Tensor) -> Tensor:  # noqa: D102
        return (delta[self.ids] * fp32(self.g)).sum((1, 2))

    def add(self, total: Tensor, weights: Tensor | None = None) -> None:  # noqa: D102
        g = weighted(self.g, weights)
        total.index_add_(0, self.ids.flatten(), g.flatten(0, 1).to(total.dtype))

    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:  # noqa: D102
        ids, g = self.ids[rows], fp32(self.g[rows])
        table = torch.zeros((len(ids), *shape), dtype=g.dtype, device=g.device)
        offset = torch.arange(len(ids), device=ids.device).unsqueeze(1) * shape[0]
        table.flatten(0, 1).index_add_(0, (ids + offset).flatten(), g.flatten(0, 1))
        return table

    def merge(self, other: Score) -> Score | None:  # noqa: D102
        if not isinstance(other, EmbeddingScore):
            return None
        return EmbeddingScore(_padded([self.ids, other.ids]), _padded([self.g, other.g]))


def cross_rows(head: MatrixScore, ids: Tensor) -> Tensor:
    """Rows of ``H_n = g_nᵀ a_n`` at the ids of each example, never the whole ``H_n``.

    Args:
        head: The head's score, not transposed.
        ids: Token ids [batch, looked up].

    Returns:
        One row per unique (example, id) pair [pairs, features], sorted by example, then id.
    """
    batch, looked_up = ids.shape
    offset = torch.arange(batch, device=ids.device).unsqueeze(1) * head.g.shape[2]
    keys, inverse = torch.unique((ids + offset).flatten(), return_inverse=True)
    picked = head.g.gather(2, ids.unsqueeze(1).expand(-1, head.g.shape[1], -1))
    rows = torch.bmm(picked.transpose(1, 2), head.a.to(picked.dtype)).flatten(0, 1)
    first = torch.empty(keys.numel(), dtype=torch.long, device=ids.device)
    first.scatter_(0, inverse, torch.arange(batch * looked_up, device=ids.device))
    return rows[first]


@dataclass(frozen=True)
class VectorScore(Score):
    """A vector added (bias) or multiplied (scale): ``G_n = Σ_t g_nt ∘ x_nt``."""

    g: Tensor  # [batch, shared, features]
    x: Tensor | None = None  # same shape as g; None means ones
    kind = "vector"

    def _positions(self) -> Tensor:
        values = self.g if self.x is None else self.g * self.x
        return fp32(values)

    def _examples(self) -> Tensor:
        # Multiply, then sum: einsum would dispatch to a slow batched matrix-vector product.
        if self.x is None and self.g.dtype not in (torch.float32, torch.float64):
            return self.g.sum(1, dtype=torch.float32)
        return self._positions().sum(1)

    def squares(self, total: Tensor) -> Tensor:  # noqa: D102
        squared = self._examples().square_()
        total.view(-1).add_(squared.sum(0))
        return squared.sum(1)

    def row_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        # A scale over several dimensions is grouped along its first; a vector not at all.
        squared = self._examples().square_().view(self.g.shape[0], total.numel(), -1).sum(2)
        total.view(-1).add_(squared.sum(0))
        return squared.sum(1)

    def position_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        squared = self._positions().square()
        total.view(-1).add_(squared.sum((0, 1)).view(total.numel(), -1).sum(1))
        return squared.sum((1, 2))

    def inner(self, delta: Tensor) -> Tensor:  # noqa: D102
        return (self._examples() * delta.reshape(-1)).sum(1)

    def add(self, total: Tensor, weights: Tensor | None = None) -> None:  # noqa: D102
        total.view(-1).add_(weighted(self._examples(), weights).sum(0))

    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:  # noqa: D102
        x = None if self.x is None else self.x[rows]
        return VectorScore(self.g[rows], x)._examples().reshape(-1, *shape)

    def merge(self, other: Score) -> Score | None:  # noqa: D102
        if not isinstance(other, VectorScore):
            return None
        return VectorScore(_padded([self._positions(), other._positions()]))


@dataclass(frozen=True)
class DenseScore(Score):
    """Whole per-example gradients, made a few at a time and dropped at once.

    ``gradients(rows)`` are the dense gradients of some examples [examples, *parameter];
    ``positions(rows)`` the same of squared positions summed, where positions have a meaning;
    ``unfolded()`` the factors ``g`` and ``a`` of a matrix view of them, where there is one.
    """

    batch: int
    gradients: Callable[[slice], Tensor]
    positions: Callable[[slice], Tensor] | None = None
    chunk: int = 1
    unfolded: Callable[[], tuple[Tensor, Tensor]] | None = None
    kind = "dense"

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.batch, self.chunk):
            yield slice(start, min(start + self.chunk, self.batch))

    def _add(self, squared: Tensor, total: Tensor) -> Tensor:
        total.add_(squared.sum(0).sum_to_size(total.shape))
        # Flattening would copy what lies in memory in another order.
        return squared.sum(tuple(range(1, squared.ndim)))

    def squares(self, total: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([self._add(self.gradients(r).square(), total) for r in self._chunks()])

    row_squares = squares

    def position_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        if self.positions is None:
            return self.squares(total)
        return torch.cat([self._add(self.positions(r), total) for r in self._chunks()])

    def inner(self, delta: Tensor) -> Tensor:  # noqa: D102
        return self.inners([delta])[0]

    def inners(self, deltas: Sequence[Tensor]) -> Tensor:  # noqa: D102
        parts = []
        for rows in self._chunks():
            some = self.gradients(rows)
            parts.append(torch.stack([(some * delta).flatten(1).sum(1) for delta in deltas]))
        return torch.cat(parts, 1)

    def add(self, total: Tensor, weights: Tensor | None = None) -> None:  # noqa: D102
        for rows in self._chunks():
            part = None if weights is None else weights[rows]
            total.add_(weighted(self.gradients(rows), part).sum(0))

    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:  # noqa: D102
        return fp32(self.gradients(rows)).reshape(-1, *shape)

    def factors(self) -> tuple[Tensor, Tensor] | None:  # noqa: D102
        return None if self.unfolded is None else self.unfolded()

    def merge(self, other: Score) -> Score | None:  # noqa: D102
        if not isinstance(other, DenseScore) or self.positions or other.positions:
            return None
        return DenseScore(self.batch, lambda rows: self.gradients(rows) + other.gradients(rows))
