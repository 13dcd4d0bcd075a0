import json

import numpy as np
import pytest
import torch

import fisherscope as fs
from analysis.builders import draw, fisher_of
from fisherscope.analysis import top_directions
from fisherscope.errors import ParameterError
from fisherscope.structures.blocks import KroneckerBlock
from oracles import models, rows
from structures.matrices import CASES, explicit, make

NAMES = [name for name in CASES if name != "grouped"]


def _flat(direction, shapes):
    return torch.cat([
        direction.get(name, torch.zeros(shape)).double().reshape(-1)
        for name, shape in shapes.items()
    ]).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_against_dense_eigenvectors(name):
    # Would catch: factors' eigenvectors swapped or transposed, a Conv1D weight not turned back,
    # eigenvalues not divided, the k largest of each block instead of all, one factor's scale
    # forgotten, smallest for largest.
    fisher = make(name)
    matrix = explicit(fisher) / fisher.denominator()
    k = min(6, len(matrix))
    found = top_directions(fisher, k=k)
    expected = np.linalg.eigvalsh(matrix)[::-1]
    frame = found.to_frame()
    np.testing.assert_allclose(frame["eigenvalue"], expected[:k], rtol=1e-9)
    assert found.mass == pytest.approx(expected[:k].sum() / np.trace(matrix))
    vectors = np.stack([
        _flat(found.direction(r), fisher.identity.parameters) for r in frame["rank"]
    ])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-9)
    np.testing.assert_allclose(
        vectors @ matrix, frame["eigenvalue"].to_numpy()[:, None] * vectors, atol=1e-9 * expected[0]
    )
    for rank, block in zip(frame["rank"], frame["block"], strict=True):
        assert " + ".join(sorted(found.direction(rank))) == " + ".join(sorted(block.split(" + ")))
        flat = _flat(found.direction(rank), fisher.identity.parameters)
        assert flat[np.abs(flat).argmax()] > 0
    assert json.dumps(found.to_dict())


def test_factored_directions_are_outer_products(monkeypatch):
    # Would catch: a direction made by rotating a whole matrix, or from the dense one.
    def refuse(*_):
        raise AssertionError("not lazy")

    for name in ("unrotate", "rotate", "multiply"):
        monkeypatch.setattr(KroneckerBlock, name, refuse)
    direction = top_directions(make("kfac "), k=1).direction(1)["linear"]
    assert torch.linalg.matrix_rank(direction) == 1


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama-untied"])
@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diagonal"])
def test_on_models(name, structure):
    # Would catch: a layout of a real model (transposed weights, joint biases, tied heads) that
    # the small cases don't have.
    case = models.case(name)
    data = rows.examples(case.rows)
    fisher = fs.estimate(case.model, data, structure=structure, progress=False)
    found = top_directions(fisher, k=5)
    values = found.to_frame()["eigenvalue"].tolist()
    assert values == sorted(values, reverse=True)
    for rank, value in enumerate(values, 1):
        direction = found.direction(rank)
        assert all(t.shape == fisher.identity.parameters[n] for n, t in direction.items())
        assert sum(float(t.square().sum()) for t in direction.values()) == pytest.approx(1)
        product = fisher.matvec(direction)
        for n, tensor in direction.items():
            error = float((product[n] - value * tensor).norm())
            assert error <= 1e-4 * value, n
        assert fisher.quadratic(direction) == pytest.approx(value, rel=1e-4)


def test_a_diagonal_has_coordinates():
    # Would catch: k of each tensor (which once gave 93 directions for 5), or all of them.
    fisher = fisher_of(draw({"a": (3, 4), "b": (5,), "s": ()}))
    found = top_directions(fisher, k=5)
    assert found.k == len(found.to_frame()) == 5
    top = fs.top_coordinates(fisher, k=5).to_frame()
    assert found.to_frame()["block"].tolist() == top["tensor"].tolist()
    assert found.to_frame()["index"].tolist() == top["index"].tolist()
    np.testing.assert_allclose(found.to_frame()["eigenvalue"], top["value"], rtol=1e-6)
    ((name, tensor),) = found.direction(1).items()
    assert tensor.sum() == tensor.max() == 1 and tensor[top["position"][0]] == 1


def test_ties_and_zeros():
    # Would catch: ties in an order of their own, 0/0 in a Fisher that is zero.
    ones = fisher_of({"a": np.ones((1, 2, 2)), "b": np.ones((1, 3))})
    frame = top_directions(ones, k=6).to_frame()
    assert list(zip(frame["block"], frame["index"], strict=True)) == [
        ("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)
    ]  # fmt: skip
    zero = top_directions(fisher_of({"a": np.zeros((1, 3))}), k=2)
    assert np.isnan(zero.mass)
    assert float(zero.direction(1)["a"].sum()) == 1


def test_bad_input_is_named():
    fisher = fisher_of(draw({"a": (3, 4)}))
    for k in (0, 13, 1.5, True):
        with pytest.raises(
            ParameterError, match=f"k={k!r} must be a whole number between 1 and 12"
        ):
            top_directions(fisher, k=k)
    with pytest.raises(ParameterError, match="grouped Fisher"):
        top_directions(make("grouped"))
    with pytest.raises(ParameterError, match="rank=0 must be a whole number between 1 and 2"):
        top_directions(fisher, k=2).direction(0)
