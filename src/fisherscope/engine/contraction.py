"""Sums of squared per-example products, computed the cheapest way.

With output gradients ``g`` [batch, shared, out] and inputs ``a`` [batch, shared, in], the
score of a matrix is ``G_n = g_nᵀ a_n``. Everything here sums functions of ``G_n`` over the
batch with memory that does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A buffer beyond this leaves the last-level cache; it is then cut into blocks of rows. Below
# it, one product per example was measured to be faster than any blocking.
BUFFER_BYTES = 16 * 2**20
BLOCK_BYTES = 2 * 2**20


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32, or as it is in fp64.

    Args:
        x: Any floating-point tensor.

    Returns:
        ``x`` itself or a copy.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def block_rows(rows: int, columns: int) -> int:
    """Rows of ``G_n`` that are formed at once.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.

    Returns:
        A number between 1 and ``rows``.
    """
    if rows * columns * 4 <= BUFFER_BYTES:
        return rows
    return min(rows, max(64, BLOCK_BYTES // (4 * columns)))


def add_squares(g: Tensor, a: Tensor, total: Tensor) -> Tensor:
    """Add ``Σ_n G_n²`` elementwise to ``total``.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        total: Accumulator [out, in], fp32 or fp64, changed in place.

    Returns:
        ``‖G_n‖²`` for each example [batch].
    """
    g, a = at_least_fp32(g), at_least_fp32(a)
    batch, _, rows = g.shape
    if g.shape[1] == 1:
        g2, a2 = g[:, 0].square(), a[:, 0].square()
        total.addmm_(g2.t().to(total.dtype), a2.to(total.dtype))
        return g2.sum(1) * a2.sum(1)
    columns = a.shape[2]
    step = block_rows(rows, columns)
    buffer = torch.empty((step, columns), dtype=g.dtype, device=g.device)
    starts = range(0, rows, step)
    norms = torch.empty((len(starts), batch), dtype=g.dtype, device=g.device)
    inputs = a.unbind(0)
    # Views are made once per block, not once per example: short rows are bound by overhead.
    for start, block_norms in zip(starts, norms.unbind(0), strict=True):
        block = total[start : start + step]
        product = buffer[: block.shape[0]]
        flat = product.view(-1)
        slices = g[:, :, start : start + step].transpose(1, 2).unbind(0)
        for g_n, a_n, norm in zip(slices, inputs, block_norms.unbind(0), strict=True):
            torch.mm(g_n, a_n, out=product)
            block.addcmul_(product, product)
            torch.dot(flat, flat, out=norm)
    return norms.sum(0)


def add_row_squares(g: Tensor, a: Tensor, total: Tensor) -> Tensor:
    """Add ``Σ_n Σ_j (G_n)_ij²`` to ``total``: one number per output row.

    Uses ``Σ_j G_ij² = g_iᵀ (A Aᵀ) g_i`` where the Gram matrix over the shared dimension is
    the smaller object, and forms ``G_n`` otherwise.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        total: Accumulator [out], changed in place.

    Returns:
        ``‖G_n‖²`` for each example [batch].
    """
    g, a = at_least_fp32(g), at_least_fp32(a)
    shared, rows, columns = g.shape[1], g.shape[2], a.shape[2]
    if shared * (rows + columns) <= rows * columns:
        per_row = torch.bmm(torch.bmm(a, a.transpose(1, 2)), g).mul_(g).sum(1)
    else:
        per_row = torch.stack([
            torch.mm(g[n].t(), a[n]).square_().sum(1) for n in range(g.shape[0])
        ])
    total.add_(per_row.sum(0))
    return per_row.sum(1)


def add_position_squares(g: Tensor, a: Tensor, total: Tensor) -> Tensor:
    """Add ``Σ_n Σ_t g_nt² a_nt²`` to ``total``: each position its own unit.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        total: Accumulator [out, in], changed in place.

    Returns:
        ``Σ_t ‖g_nt‖² ‖a_nt‖²`` for each example [batch].
    """
    g2, a2 = at_least_fp32(g).square(), at_least_fp32(a).square()
    total.addmm_(g2.flatten(0, 1).t().to(total.dtype), a2.flatten(0, 1).to(total.dtype))
    return (g2.sum(2) * a2.sum(2)).sum(1)


def inner(g: Tensor, a: Tensor, delta: Tensor) -> Tensor:
    """``⟨G_n, Δ⟩`` for each example, without forming ``G_n``.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        delta: Direction [out, in].

    Returns:
        One number per example [batch].
    """
    moved = torch.matmul(at_least_fp32(a), delta.to(at_least_fp32(a).dtype).t())
    return moved.mul_(at_least_fp32(g)).sum((1, 2))


# A product of two matrices that are at hand takes as long as that many positions of ``G_n``.
_PRODUCT = 8


def inners(g: Tensor, a: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """``⟨G_n, Δ⟩`` for each example and several directions.

    One direction at a time costs as much as forming ``G_n`` once, so it is formed where that
    serves several, a block of rows at a time.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        deltas: Directions [out, in].

    Returns:
        One number per direction and example [directions, batch].
    """
    count, shared = len(deltas), g.shape[1]
    if count * shared <= shared + _PRODUCT * (count + 1):
        return torch.stack([inner(g, a, delta) for delta in deltas])
    g, a = at_least_fp32(g), at_least_fp32(a)
    rows, columns = deltas[0].shape
    step = min(rows, max(1, BLOCK_BYTES // (4 * columns * (count + 1))))
    product = torch.empty((step, columns), dtype=g.dtype, device=g.device)
    found = torch.zeros((g.shape[0], count), dtype=g.dtype, device=g.device)
    for start in range(0, rows, step):
        # The directions' block stays in the cache while the examples pass by.
        block = torch.stack([delta[start : start + step].to(g) for delta in deltas]).flatten(1)
        part = product[: min(step, rows - start)]
        flat = part.view(-1)
        slices = g[:, :, start : start + step].transpose(1, 2).unbind(0)
        for g_n, a_n, sums in zip(slices, a.unbind(0), found.unbind(0), strict=True):
            torch.mm(g_n, a_n, out=part)
            sums.addmv_(block, flat)
    return found.t()


# Below this width one product beats several smaller ones, although it does twice the work.
_GRAM_WHOLE = 384
_GRAM_BLOCK = 256


def add_gram(x: Tensor, total: Tensor) -> None:
    """Add ``xᵀ x`` to the upper triangle of ``total``; what lies below it is not defined.

    Wide matrices are multiplied block by block, which spares nearly half of the work.

    Args:
        x: Rows [rows, features].
        total: Accumulator [features, features], changed in place; :func:`mirror` does the rest.
    """
    x = x.to(total.dtype)
    width = x.shape[1]
    if width <= _GRAM_WHOLE:
        total.addmm_(x.t(), x)
        return
    count = max(2, round(width / _GRAM_BLOCK))
    edges = [width * i // count for i in range(count + 1)]
    for start, stop in zip(edges, edges[1:], strict=False):
        total[start:stop, start:].addmm_(x[:, start:stop].t(), x[:, start:])


def mirror(total: Tensor) -> Tensor:
    """Make the matrix symmetric whose upper triangle :func:`add_gram` filled.

    Args:
        total: Square matrix, changed in place below its diagonal; more can be added to it.

    Returns:
        The same, exactly symmetric.
    """
    for start in range(0, len(total), _GRAM_BLOCK):
        stop = start + _GRAM_BLOCK
        total[stop:, start:stop] = total[start:stop, stop:].t()
        corner = total[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).t())
    return total


def rotates_first(shared: int, out: int, into: int) -> bool:
    """Whether rotating ``g`` and ``a`` is cheaper than rotating every ``G_n = g_nᵀ a_n``.

    Both ways form one matrix per example. Rotating the rows takes ``T (o² + i²)``
    multiplications, rotating the matrix ``o i (o + i)`` (Dangel et al., curvlinops).

    Args:
        shared: Rows T of one example.
        out: Width o of ``g``.
        into: Width i of ``a``.

    Returns:
        ``True`` if the rows should be rotated.
    """
    return shared * (out * out + into * into) < out * into * (out + into)


def add_rotated_squares(g: Tensor, a: Tensor, q: Tensor, r: Tensor, total: Tensor) -> Tensor:
    """Add ``Σ_n (Qᵀ G_n R)²`` elementwise to ``total``, one example's matrix at a time.

    Args:
        g: Output gradients [batch, shared, out].
        a: Inputs [batch, shared, in].
        q: Orthogonal [out, out].
        r: Orthogonal [in, in].
        total: Accumulator [out, in], changed in place.

    Returns:
        ``‖G_n‖²`` for each example [batch].
    """
    g, a = at_least_fp32(g), at_least_fp32(a)
    norms = []
    for g_n, a_n in zip(g.unbind(0), a.unbind(0), strict=True):
        rotated = q.t().to(g) @ (g_n.t() @ a_n) @ r.to(g)
        total.addcmul_(rotated, rotated)
        norms.append(rotated.square().sum())
    return torch.stack(norms)
