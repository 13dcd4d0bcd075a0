"""Sums of squared products against the products themselves, whatever the blocking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherscope.engine import contraction

SIZES = st.integers(1, 7)


def make(batch: int, shared: int, rows: int, columns: int, dtype=torch.float64):
    g = torch.Generator().manual_seed(batch + 10 * shared + 100 * rows + 1000 * columns)
    out = torch.randn(batch, shared, rows, generator=g, dtype=torch.float64)
    inputs = torch.randn(batch, shared, columns, generator=g, dtype=torch.float64)
    return out.to(dtype), inputs.to(dtype)


def products(g, a):
    """G_n one entry at a time, in the plainest way."""
    return torch.stack([
        sum(torch.outer(g[n, t], a[n, t]) for t in range(g.shape[1])) for n in range(len(g))
    ])


# Would catch: a sum over positions after squaring, the short cut for one position used for
# two, norms of another example, blocks of rows that overlap or leave some out.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, SIZES)
def test_against_explicit_products(batch, shared, rows, columns):
    g, a = make(batch, shared, rows, columns)
    whole = products(g, a)
    start = torch.rand(rows, columns, dtype=torch.float64)
    total = start.clone()
    norms = contraction.add_squares(g, a, total)
    assert torch.allclose(total, start + whole.square().sum(0))
    assert torch.allclose(norms, whole.square().sum((1, 2)))

    total = start[:, 0].clone()
    norms = contraction.add_row_squares(g, a, total)
    assert torch.allclose(total, start[:, 0] + whole.square().sum((0, 2)))
    assert torch.allclose(norms, whole.square().sum((1, 2)))

    total = start.clone()
    norms = contraction.add_position_squares(g, a, total)
    single = torch.einsum("nto,nti->ntoi", g, a).square()
    assert torch.allclose(total, start + single.sum((0, 1)))
    assert torch.allclose(norms, single.sum((1, 2, 3)))

    delta = torch.rand(rows, columns, dtype=torch.float64)
    assert torch.allclose(contraction.inner(g, a, delta), (whole * delta).sum((1, 2)))


# Would catch: products that are formed for one direction and used for another, and blocks of
# rows that overlap or leave some out.
@pytest.mark.parametrize("shared", [1, 30])
@pytest.mark.parametrize("rows", [6, 64, 65])
def test_several_directions(monkeypatch, shared, rows):
    monkeypatch.setattr(contraction, "BLOCK_BYTES", 4 * 7 * 4 * 10)  # blocks of 10 rows
    g, a = make(3, shared, rows, 7)
    deltas = [torch.rand(rows, 7, dtype=torch.float64) for _ in range(3)]
    expected = torch.stack([(products(g, a) * delta).sum((1, 2)) for delta in deltas])
    assert torch.allclose(contraction.inners(g, a, deltas), expected)
    formed = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *x, **y: formed.append(1) or real(*x, **y))
    contraction.inners(g, a, deltas)
    assert len(formed) == (0 if shared == 1 else 3 * -(-rows // 10))


# Would catch: blocks that are only right where they divide the number of rows; real layers
# are split in blocks, tiny ones never are.
@pytest.mark.parametrize("rows", [64, 65, 129, 200])
def test_blocks_of_rows(monkeypatch, rows):
    monkeypatch.setattr(contraction, "BUFFER_BYTES", 1)
    monkeypatch.setattr(contraction, "BLOCK_BYTES", 1)
    g, a = make(3, 5, rows, 4, torch.float32)
    assert contraction.block_rows(rows, 4) == 64
    total = torch.zeros(rows, 4)
    norms = contraction.add_squares(g, a, total)
    truth = products(g.double(), a.double()).square()
    assert torch.allclose(total.double(), truth.sum(0), rtol=1e-5)
    assert torch.allclose(norms.double(), truth.sum((1, 2)), rtol=1e-5)


# Would catch: a block of no rows, or of more than there are.
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_block_sizes_are_sensible(rows, columns):
    assert 1 <= contraction.block_rows(rows, columns) <= rows


# Would catch: the Gram matrix used where it is the larger object, which would cost memory that
# grows with the square of the length; both ways are taken here.
@pytest.mark.parametrize(("shared", "rows", "columns"), [(2, 9, 8), (40, 3, 4)])
def test_both_ways_of_row_sums(shared, rows, columns):
    g, a = make(2, shared, rows, columns)
    total = torch.zeros(rows, dtype=torch.float64)
    contraction.add_row_squares(g, a, total)
    assert torch.allclose(total, products(g, a).square().sum((0, 2)))


# Would catch: products and squares in bf16.
def test_bf16_inputs_are_multiplied_in_fp32():
    g, a = make(4, 6, 5, 3, torch.bfloat16)
    truth = products(g.double(), a.double()).square()
    for add, shape in (
        (contraction.add_squares, (5, 3)),
        (contraction.add_row_squares, (5,)),
    ):
        total = torch.zeros(shape)
        add(g, a, total)
        expected = truth.sum(0) if len(shape) == 2 else truth.sum((0, 2))
        assert torch.allclose(total.double(), expected, rtol=1e-5)


# Would catch: [batch, out, in] in memory. The buffer is made once, so the largest tensor
# allocated is as large as one G_n, however many examples there are.
def test_memory_does_not_grow_with_the_batch():
    sizes = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    for batch in (2, 64):
        g, a = make(batch, 3, 40, 50, torch.float32)
        with Count():
            contraction.add_squares(g, a, torch.zeros(40, 50))
    assert max(sizes) <= max(40 * 50, 64 * 3 * 50)


# Planted: the part below the diagonal blocks left as it was; a lower triangle that is added to
# itself when more comes after a mirroring. Would catch: an upper triangle that mirroring changes.
@pytest.mark.parametrize("width", [1, 5, 300, 385, 600])
def test_a_gram_is_mirrored_in_place_and_goes_on(width):
    g = torch.Generator().manual_seed(width)
    x = torch.randn(7, width, generator=g, dtype=torch.float64)
    total = torch.zeros(width, width, dtype=torch.float64)
    for rows in (x[:3], x[3:]):
        contraction.add_gram(rows, total)
        upper = total.triu()
        assert contraction.mirror(total) is total
        assert torch.equal(total, total.t()) and torch.equal(total.triu(), upper)
    assert torch.allclose(total, x.t() @ x)
