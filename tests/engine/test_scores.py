"""Each kind of score against the dense per-example gradients it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fisherscope.engine.expert_scores import ExpertScore
from fisherscope.engine.scores import (
    DenseScore,
    EmbeddingScore,
    MatrixScore,
    Score,
    VectorScore,
    cross_rows,
)

B, T, OUT, IN, ROWS = 3, 4, 5, 2, 6


@dataclass(frozen=True)
class Kind:
    """A score, its dense gradients [batch, ...], and those of single positions [batch, T, ...]."""

    score: Score
    dense: Tensor
    positions: Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=g, dtype=torch.float64)


def matrix(transposed: bool = False, seed: int = 0) -> Kind:
    g, a = draw(B, T, OUT, seed=seed), draw(B, T, IN, seed=seed)
    single = torch.einsum("nto,nti->ntio" if transposed else "nto,nti->ntoi", g, a)
    return Kind(MatrixScore(g, a, transposed), single.sum(1), single)


def embedding(seed: int = 0) -> Kind:
    # Ids repeat within an example and between examples.
    ids = torch.tensor([[0, 1, 1, 1], [5, 0, 5, 2], [3, 3, 3, 3]]).roll(seed, 1)
    g = draw(B, T, IN, seed=seed)
    single = torch.nn.functional.one_hot(ids, ROWS).double().unsqueeze(-1) * g.unsqueeze(2)
    return Kind(EmbeddingScore(ids, g), single.sum(1), single)


def vector(scale: bool, seed: int = 0) -> Kind:
    g = draw(B, T, OUT, seed=seed)
    x = draw(B, T, OUT, seed=seed + 1) if scale else None
    single = g if x is None else g * x
    return Kind(VectorScore(g, x), single.sum(1), single)


def dense(seed: int = 0) -> Kind:
    whole = draw(B, OUT, IN, seed=seed)
    return Kind(DenseScore(B, lambda n: whole[n]), whole, whole.unsqueeze(1))


def experts(transposed: bool, bias: bool = False, seed: int = 0) -> Kind:
    """Two of four experts for every position; one expert is chosen by nobody."""
    chosen = torch.tensor([[[0, 3], [3, 0], [0, 3], [0, 3]], [[3, 0]] * 4, [[2, 0]] * 4])
    chosen = chosen.roll(seed, 1)
    g, a = draw(B, T, 2, OUT, seed=seed), draw(B, T, 2, IN, seed=seed)
    order = chosen.flatten().argsort(stable=True)
    score = ExpertScore(
        g.flatten(0, 2)[order],
        None if bias else a.flatten(0, 2)[order],
        chosen.flatten()[order],
        order // (2 * T),
        B,
        transposed,
    )
    single = g if bias else torch.einsum("ntko,ntki->ntk" + ("io" if transposed else "oi"), g, a)
    at = torch.nn.functional.one_hot(chosen, 4).double()
    # Its two choices share no weight, so that one position's score is the sum of both.
    single = torch.einsum("ntke,ntk...->nte...", at, single)
    return Kind(score, single.sum(1), single)


KINDS = {
    "experts": lambda seed=0: experts(False, seed=seed),
    "experts-transposed": lambda seed=0: experts(True, seed=seed),
    "experts-bias": lambda seed=0: experts(False, bias=True, seed=seed),
    "matrix": lambda seed=0: matrix(False, seed),
    "transposed": lambda seed=0: matrix(True, seed),
    "embedding": embedding,
    "scale": lambda seed=0: vector(True, seed),
    "shift": lambda seed=0: vector(False, seed),
    "dense": dense,
}


def by_rows(name: str, d: Tensor) -> Tensor:
    """Sums over everything but the output dimension (the second where stored transposed)."""
    if d.ndim == 1:
        return d.clone()
    if name.startswith("experts"):
        return d.flatten(1).sum(1).reshape(-1, *[1] * (d.ndim - 1))
    return d.sum(0 if name == "transposed" else 1, keepdim=True)


# Would catch: any formula of a score that differs from its definition, also on top of sums
# that are not zero.
@pytest.mark.parametrize("name", KINDS)
def test_against_dense_gradients(name):
    kind = KINDS[name]()
    score, whole = kind.score, kind.dense
    norms = whole.flatten(1).square().sum(1)
    start = draw(*whole.shape[1:], seed=9)

    total = start.clone()
    assert torch.allclose(score.squares(total), norms)
    assert torch.allclose(total, start + whole.square().sum(0))

    rows = by_rows(name, start)
    total = rows.clone()
    assert torch.allclose(score.row_squares(total), norms)
    assert torch.allclose(total, rows + by_rows(name, whole.square().sum(0)))

    single = kind.positions.square()
    for total, expected in (
        (start.clone(), start + single.sum((0, 1))),
        (rows.clone(), rows + by_rows(name, single.sum((0, 1)))),
    ):
        assert torch.allclose(score.position_squares(total), single.flatten(1).sum(1))
        assert torch.allclose(total, expected)

    delta = draw(*whole.shape[1:], seed=4)
    assert torch.allclose(score.inner(delta), (whole * delta).flatten(1).sum(1))
    several = [delta, start, -2 * delta]
    assert torch.allclose(score.inners(several), torch.stack([score.inner(d) for d in several]))
    total = start.clone()
    score.add(total)
    assert torch.allclose(total, start + whole.sum(0))

    total, weights = start.clone(), draw(B, seed=5)
    score.add(total, weights)
    assert torch.allclose(total, start + torch.einsum("n,n...->...", weights, whole))
    for some in (slice(0, B), slice(1, 3)):
        assert torch.allclose(score.dense(some, whole.shape[1:]), whole[some])
    if name in {"matrix", "transposed"}:
        g, a = score.factors()
        product = torch.einsum("nto,nti->nio" if name == "transposed" else "nto,nti->noi", g, a)
        assert torch.allclose(product, whole)
    else:
        assert score.factors() is None


# Would catch: uses of a reused parameter squared one by one.
@pytest.mark.parametrize("name", KINDS)
def test_merged_uses_are_summed_before_squaring(name):
    first, second = KINDS[name](0), KINDS[name](1)
    merged = first.score.merge(second.score)
    whole = first.dense + second.dense
    total = torch.zeros_like(whole[0])
    assert torch.allclose(merged.squares(total), whole.flatten(1).square().sum(1))
    assert torch.allclose(total, whole.square().sum(0))


# Would catch: two things merged that cannot be.
def test_unlike_uses_do_not_merge():
    made = {name: kind().score for name, kind in KINDS.items()}
    for a, one in made.items():
        for b, other in made.items():
            like = a == b or {a, b} == {"scale", "shift"}
            assert (one.merge(other) is None) != like, (a, b)


# Would catch: a tied table whose head and embedding are squared one by one; ids of an example
# that looks one up twice; the rows of another example.
def test_a_tied_table_gets_its_cross_terms():
    g, a = draw(B, T, ROWS), draw(B, T, IN)
    head, table = MatrixScore(g, a), embedding()
    rows = cross_rows(head, table.score.ids)
    tied = EmbeddingScore(table.score.ids, table.score.g, rows)
    whole = torch.einsum("nto,nti->noi", g, a) + table.dense
    for method, expected in (
        ("squares", whole.square().sum(0)),
        ("row_squares", whole.square().sum((0, 2)).unsqueeze(1)),
    ):
        total = torch.zeros_like(expected)
        norms = getattr(head, method)(total) + getattr(tied, method)(total)
        assert torch.allclose(total, expected)
        assert torch.allclose(norms, whole.square().sum((1, 2)))
