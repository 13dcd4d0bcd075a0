"""Both structures against the dense matrix that they stand for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import GroupedFisher
from fisherscope.structures.vectors import total
from structures.fishers import SHAPES, SUMMED, build, scores

STRUCTURES = ["diagonal", "grouped"]


def dense(of, structure, count):
    """The matrix itself, from the scores: never through the code under test."""
    blocks = []
    for name, s in of.squares.items():
        block = s.sum((0, 1)) / s.shape[1] / count
        if structure == "grouped" and name in SUMMED:
            block = block.mean(SUMMED[name], keepdim=True).expand(block.shape)
        blocks.append(block.reshape(-1))
    return torch.diag(torch.cat(blocks))


def flat(v):
    return torch.cat([v[name].reshape(-1) for name in SHAPES])


def vector(seed):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in SHAPES.items()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("unit", ["example", "token"])
def test_every_verb_against_the_dense_matrix(structure, unit):
    # Catches: rows taken for columns (one weight is square and transposed), group sums taken
    # for group means, a missing denominator, damping before division.
    of = scores("abcdef", draws=2)
    other = scores("uvwxyz", seed=5, draws=2)
    kind = {"structure": structure, "unit": unit, "fisher_type": "mc", "dtype": torch.float64}
    count, count_b = (6, 6) if unit == "example" else (of.tokens.sum(), other.tokens.sum())
    fisher, v = build(of, **kind), vector(1)
    matrix = dense(of, structure, count)
    damped = matrix + 0.3 * torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(flat(fisher.matvec(v)), matrix @ flat(v))
    torch.testing.assert_close(
        flat(fisher.solve(v, damping=0.3)), torch.linalg.solve(damped, flat(v))
    )
    assert fisher.quadratic(v) == pytest.approx((flat(v) @ matrix @ flat(v)).item())
    assert fisher.logdet(damping=0.3) == pytest.approx(torch.logdet(damped).item())
    inverse = fisher.inverse_diagonal(damping=0.3)
    torch.testing.assert_close(flat(inverse), torch.linalg.inv(damped).diagonal())
    assert {n: tuple(d.shape) for n, d in inverse.items()} == SHAPES
    assert fisher.trace() == pytest.approx(matrix.trace().item())
    product = matrix @ dense(other, structure, count_b)
    assert fisher.inner(build(other, **kind)) == pytest.approx(product.trace().item())
    assert fisher.inner(fisher) == pytest.approx((matrix @ matrix).trace().item())


def test_diagonal_has_the_shapes_of_the_parameters():
    # Catches: flattened or grouped tensors, and a view that lets the caller change the sums.
    of = scores("abc")
    fisher = build(of)
    diagonal = fisher.diagonal()
    assert {n: tuple(d.shape) for n, d in diagonal.items()} == SHAPES
    expected = of.squares["square.weight"].sum((0, 1)) / 3
    torch.testing.assert_close(diagonal["square.weight"].double(), expected, rtol=1e-6, atol=0)
    before = fisher.trace()
    fisher.diagonal("sum")["a.weight"].zero_()
    assert fisher.trace() == before


def test_groups_are_output_neurons_and_diagonal_says_what_to_do():
    # Catches: summing a transposed weight over the wrong dimension, and a silent broadcast.
    of = scores("abc")
    fisher = build(of, structure="grouped", dtype=torch.float64)
    assert isinstance(fisher, GroupedFisher)
    groups = fisher.groups()
    torch.testing.assert_close(groups["a.weight"], of.squares["a.weight"].sum((0, 1, 3)) / 3)
    torch.testing.assert_close(
        groups["square.weight"], of.squares["square.weight"].sum((0, 1, 2)) / 3
    )
    assert groups["a.bias"].shape == (3,)
    with pytest.raises(ParameterError, match=r"\.groups\(\).*structure=\"diagonal\""):
        fisher.diagonal()


def test_grouped_sums_must_say_which_dimension_is_the_group():
    # Catches: guessing rows for a square transposed weight.
    fisher = build(scores("ab"), structure="grouped")
    flattened = {n: s.reshape(-1) for n, s in fisher.sums.items()}
    with pytest.raises(ParameterError, match=r"\[out, 1\]"):
        type(fisher)(fisher.identity, flattened, fisher.ledger, fisher.coverage, 2)
    full = build(scores("ab"))
    with pytest.raises(ParameterError, match=r"'a.weight'.*\(3, 1\).*\(3, 4\)"):
        type(full)(full.identity, fisher.sums, full.ledger, full.coverage, 2)


def test_groups_along_other_dimensions_are_not_compared():
    # Catches: [out, 1] against [1, out] broadcasting to an outer product.
    one, two = (build(scores(ids), structure="grouped") for ids in ("ab", "cd"))
    turned = {**two.sums, "square.weight": two.sums["square.weight"].T.contiguous()}
    two = type(two)(two.identity, turned, two.ledger, two.coverage, 2)
    with pytest.raises(ParameterError, match=r"'square.weight' is grouped as"):
        one.inner(two)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_partial_vectors_count_absent_parameters_as_zero(structure):
    # Catches: absent parameters raising a KeyError or contributing.
    fisher, v = build(scores("abc"), structure=structure), vector(2)
    part = {"a.weight": v["a.weight"]}
    rest = {n: t for n, t in v.items() if n != "a.weight"}
    whole = fisher.quadratic(part) + fisher.quadratic(rest)
    assert whole == pytest.approx(fisher.quadratic(v))
    assert list(fisher.matvec(part)) == list(fisher.solve(part, damping=1)) == ["a.weight"]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("verb", ["quadratic", "matvec", "solve"])
def test_vectors_that_do_not_fit_are_named(structure, verb):
    # Catches: dropping unknown names without a word, and shapes that broadcast.
    fisher = build(scores("abc"), structure=structure)
    more = {"damping": 1.0} if verb == "solve" else {}
    with pytest.raises(ParameterError, match="'lm_head' is not covered"):
        getattr(fisher, verb)({"lm_head": torch.ones(3)}, **more)
    with pytest.raises(ParameterError, match=r"'a.weight' has shape \(4,\).*\(3, 4\)"):
        getattr(fisher, verb)({"a.weight": torch.ones(4)}, **more)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_singular_matrix_asks_for_damping(structure):
    # Catches: infinities from dividing by zero.
    fisher = build(scores("abc"), structure=structure)
    fisher.sums["a.bias"][1] = 0
    with pytest.raises(ParameterError, match=r"singular.*1 of 3 entries of 'a.bias'"):
        fisher.solve(vector(0), damping=0)
    with pytest.raises(ParameterError, match="'a.bias'"):
        fisher.logdet(damping=0)
    assert math.isfinite(fisher.logdet(damping=1e-6))
    for damping in (-1.0, math.inf, math.nan):
        with pytest.raises(ParameterError, match="damping="):
            fisher.solve(vector(0), damping=damping)


def test_inner_compares_tasks_but_not_models():
    # Catches: refusing other data or other random labels, or accepting another model.
    one = build(scores("ab", draws=2), fisher_type="mc")
    build(scores("cd", draws=3), fisher_type="mc", seed=9).inner(one)
    with pytest.raises(IdentityError, match="model_fingerprint"):
        one.inner(build(scores("cd", draws=2), fisher_type="mc", model_fingerprint="n"))
    with pytest.raises(IdentityError, match="structure"):
        one.inner(build(scores("cd", draws=2), fisher_type="mc", structure="grouped"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=50))
def test_totals_match_an_exact_sum(values):
    # Catches: accumulating in float32, and empty tensors.
    x = torch.tensor(values, dtype=torch.float32)
    assert total(x) == pytest.approx(math.fsum(x.tolist()), rel=1e-12, abs=1e-9)
    assert total(x, x) == pytest.approx(math.fsum(v * v for v in x.tolist()), rel=1e-12)


def test_totals_cross_the_chunk_boundary(monkeypatch):
    # Catches: dropping or repeating the last chunk.
    monkeypatch.setattr("fisherscope.structures.vectors._CHUNK", 7)
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert total(x) == 276
    assert total(x.transpose(0, 2), function=torch.sqrt) == pytest.approx(x.sqrt().sum().item())
