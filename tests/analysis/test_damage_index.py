"""The damage index against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fisherscope as fs
from analysis.builders import draw, fisher_of

SHAPES = {
    "embed.weight": (5, 3),
    "layers.0.fc.weight": (4, 3),
    "layers.0.fc.bias": (4,),
    "layers.1.fc.weight": (4, 4),
}
RNG = np.random.default_rng(0)
GRADIENT = {name: torch.as_tensor(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
FISHER = fisher_of(draw(SHAPES))
KINDS = ["quadratic", "sqrt", "l1"]


def by_hand(kind, names):
    f = np.concatenate([FISHER.diagonal()[n].double().numpy().ravel() for n in names])
    g = np.concatenate([GRADIENT[n].numpy().ravel() for n in names])
    weight = np.sqrt(f) if kind == "sqrt" else f
    return (weight * (g**2 if kind == "quadratic" else abs(g))).sum(), weight.sum()


# Catches (tensorscope 1.2.5): a gradient that a reducer squares first, so that the formulas are
# (sum g^2)^2 F, (sum g^2) sqrt F and (sum g^2) F; a normalisation by something else than stated.
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_formula(kind):
    found = fs.damage_index(FISHER, GRADIENT, kind=kind)
    groups = {
        ("all", ""): list(SHAPES),
        ("layer", "embed"): ["embed.weight"],
        ("layer", "0"): ["layers.0.fc.weight", "layers.0.fc.bias"],
        ("layer", "1"): ["layers.1.fc.weight"],
        **{("tensor", name): [name] for name in SHAPES},
    }
    frame = found.to_frame()
    assert list(zip(frame["level"], frame["name"], strict=True)) == list(groups)
    whole, _ = by_hand(kind, SHAPES)
    for row, names in zip(frame.to_dict(orient="records"), groups.values(), strict=True):
        total, weight = by_hand(kind, names)
        assert row["index"] == pytest.approx(total / weight, rel=1e-6)
        assert row["share"] == pytest.approx(total / whole, rel=1e-6)
        assert row["n_parameters"] == sum(math.prod(SHAPES[name]) for name in names)
    assert found.index == frame["index"][0]
    for level in ("layer", "tensor"):
        assert frame["share"][frame["level"] == level].sum() == pytest.approx(1)


# Catches (tensorscope fact 7): exponents 4, 2 and 2 where 2, 1 and 1 are meant.
@pytest.mark.parametrize("kind", KINDS)
def test_ten_times_the_gradient(kind):
    tenfold = {name: 10 * g for name, g in GRADIENT.items()}
    one, ten = (fs.damage_index(FISHER, g, kind=kind) for g in (GRADIENT, tenfold))
    assert ten.index / one.index == pytest.approx(10**one.exponent)
    assert {"quadratic": 2, "sqrt": 1, "l1": 1}[kind] == one.exponent


# Catches: an index that depends on how much data, or which scale of the Fisher, there was.
@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_the_fisher_drops_out(kind):
    squares = draw(SHAPES)
    twice = fisher_of({name: np.concatenate([7 * s, 7 * s]) for name, s in squares.items()})
    found = fs.damage_index(twice, GRADIENT, kind=kind).index
    assert found == pytest.approx(fs.damage_index(FISHER, GRADIENT, kind=kind).index, rel=1e-6)


# Catches: cosine-like answers to a constant gradient, for which every mean is known.
@pytest.mark.parametrize(("kind", "value"), [("quadratic", 9.0), ("sqrt", 3.0), ("l1", 3.0)])
def test_a_constant_gradient(kind, value):
    constant = {name: torch.full(shape, -3.0) for name, shape in SHAPES.items()}
    frame = fs.damage_index(FISHER, constant, kind=kind).to_frame()
    np.testing.assert_allclose(frame["index"], value, rtol=1e-12)


# Catches: 0/0 as a number.
def test_a_fisher_that_is_zero():
    zero = fisher_of({name: np.zeros((2, *shape)) for name, shape in SHAPES.items()})
    found = fs.damage_index(zero, GRADIENT)
    assert found.outcome == "zero_fisher"
    assert math.isnan(found.index)
    assert found.to_dict()["index"] is None


# Catches: tensors that are matched by substring, dropped in silence, or broadcast.
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda g: {}, fs.ParameterError, "empty"),
        (
            lambda g: {n: t for n, t in g.items() if "bias" not in n},
            fs.ParameterError,
            "lacks.*'layers.0.fc.bias'",
        ),
        (lambda g: {**g, "fc.weight": torch.ones(4, 3)}, fs.ParameterError, "'fc.weight'"),
        (lambda g: {**g, "embed.weight": torch.ones(5, 1)}, fs.ParameterError, r"\(5, 1\)"),
        (
            lambda g: {**g, "embed.weight": torch.full((5, 3), torch.nan)},
            fs.NonFiniteError,
            "'embed.weight'",
        ),
    ],
)
def test_gradients_of_other_parameters(change, error, said):
    with pytest.raises(error, match=said):
        fs.damage_index(FISHER, change(GRADIENT))


def test_what_makes_no_sense():
    with pytest.raises(fs.ParameterError, match="kind='cubic'"):
        fs.damage_index(FISHER, GRADIENT, kind="cubic")
    grouped = fisher_of(draw(SHAPES), structure="grouped")
    with pytest.raises(fs.ParameterError, match="grouped"):
        fs.damage_index(grouped, GRADIENT)
