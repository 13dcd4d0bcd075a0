"""Powers of every structure against dense algebra, and gradients that don't fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

import fisherscope as fs
from fisherscope.surgery import precondition
from oracles import models, rows
from structures.matrices import CASES, explicit, make
from structures.test_blockwise import flat, vector


def dense_power(fisher, level: float, power: float) -> np.ndarray:
    """(F + level I)^-power from the explicit matrix; never through the code under test."""
    matrix = explicit(fisher) / fisher.n_units
    values, vectors = scipy.linalg.eigh(matrix + level * np.eye(len(matrix)))
    return vectors @ np.diag(values**-power) @ vectors.T


# Would catch: a power of the entries instead of the matrix, of the undamped spectrum, of one
# factor only; the relative damping by tensor instead of over all, or by the sum.
@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("case", CASES)
def test_every_structure_and_power_against_dense_algebra(case, relative, power):
    fisher, damping = make(case, unit="token"), 0.2
    mean = explicit(fisher).diagonal().mean() / fisher.n_units
    v = vector(fisher, 3)
    found = precondition(v, fisher, damping=damping, relative=relative, power=power)
    expected = dense_power(fisher, damping * (mean if relative else 1), power) @ flat(fisher, v)
    np.testing.assert_allclose(flat(fisher, found), expected, rtol=1e-9, atol=1e-10)
    assert list(found) == list(fisher.identity.parameters)


# Would catch: a solve that became another number when powers came in.
@pytest.mark.parametrize("case", ["diagonal", "grouped"])
def test_the_first_power_is_plain_division(case):
    fisher = make(case, dtype=torch.float32)
    v = vector(fisher, dtype=torch.float32)
    for name, tensor in fisher.solve(v, damping=0.3).items():
        size = v[name].numel() // fisher.sums[name].numel()
        diagonal = fisher.sums[name] / (fisher.n_units * size)
        assert torch.equal(tensor, v[name] / (diagonal + 0.3))


# Would catch: the neighbour's keys that never match, so that gradients come back unchanged; and
# a default that does nothing.
@pytest.mark.parametrize(
    ("name", "structure"),
    [
        *((n, s) for n in ("gpt2", "llama-tied") for s in ("diagonal", "grouped", "kfac", "ekfac")),
        *(("mlp", s) for s in ("block", "dense")),
    ],
)
def test_every_gradient_of_a_real_model_changes(name, structure):
    case = models.case(name)
    fisher = fs.estimate(
        case.model, rows.examples(case.rows), structure=structure, unit="example", progress=False
    )
    g = torch.Generator().manual_seed(0)
    gradients = {
        n: torch.randn(p.shape, generator=g, dtype=torch.float64)
        for n, p in case.model.named_parameters()
    }
    found = precondition(gradients, fisher, damping=0.1)
    assert list(found) == list(gradients)
    for n, tensor in found.items():
        assert tensor.shape == gradients[n].shape
        assert not torch.allclose(tensor, gradients[n], rtol=0.5), n
    level = 0.1 * fisher.trace() / fisher.n_parameters
    back = {n: t + level * found[n] for n, t in fisher.matvec(found).items()}
    for n, tensor in gradients.items():
        torch.testing.assert_close(back[n], tensor, rtol=1e-4, atol=1e-4)


# Would catch: the other name of a tied tensor refused, or counted apart.
def test_a_tied_gradient_comes_under_any_name():
    model = models.case("gpt2").model
    fisher = fs.estimate(model, rows.examples(models.case("gpt2").rows), progress=False)
    gradients = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    plain = precondition(gradients, fisher)
    renamed = {"lm_head.weight" if "wte" in n else n: t for n, t in gradients.items()}
    with pytest.raises(fs.ParameterError, match="'lm_head.weight'"):
        precondition(renamed, fisher)
    found = precondition(renamed, fisher, model=model)
    assert set(found) == set(plain)
    assert all(torch.equal(found[n], t) for n, t in plain.items())
    twice = gradients | {"lm_head.weight": 2 * gradients["transformer.wte.weight"]}
    with pytest.raises(fs.ParameterError, match="tied parameter 'transformer.wte.weight'"):
        precondition(twice, fisher, model=model)


# Would catch: half precision that overflows, and results left on another device or in fp16.
def test_half_precision_gradients_become_float32():
    fisher = make("diagonal", dtype=torch.float32)
    v = vector(fisher, dtype=torch.float16)
    found = precondition(v, fisher, damping=1e-6)
    assert {t.dtype for t in found.values()} == {torch.float32}
    with pytest.raises(fs.NonFiniteError, match=r"overflows torch.float32.*larger damping"):
        precondition({n: 1e30 * t.float() for n, t in v.items()}, fisher, power=40.0)


def zero(fisher):
    sums = {k: torch.zeros_like(t) for k, t in fisher.sums.items()}
    return dataclasses.replace(fisher, sums=sums)


def spoil(v, name, value):
    return {**v, name: torch.full_like(v[name], value)}


FISHER = make("block")
GOOD = vector(FISHER)
MISFITS = {
    "empty": ({}, FISHER, {}, "gradients is empty"),
    "none": ({**GOOD, "bias": None}, FISHER, {}, r"no gradient \(None\) of 'bias'"),
    "unknown": ({**GOOD, "math|bias|row": GOOD["bias"]}, FISHER, {}, r"'math\|bias\|row'"),
    "substring": ({**GOOD, "big_linear": GOOD["linear"]}, FISHER, {}, "'big_linear'"),
    "missing": ({"bias": GOOD["bias"]}, FISHER, {}, "lacks 'conv', 'linear', 'scalar' of"),
    "shape": ({**GOOD, "bias": torch.ones(1)}, FISHER, {}, r"'bias' with shape \(1,\).*\(3,\)"),
    "nan": (spoil(GOOD, "bias", float("nan")), FISHER, {}, "'bias' with NaN"),
    "negative damping": (GOOD, FISHER, {"damping": -1e-3}, "damping=-0.001"),
    "nan damping": (GOOD, FISHER, {"damping": float("nan")}, "damping=nan"),
    "negative power": (GOOD, FISHER, {"power": -1.0}, r"power=-1.0.*matvec"),
    "nan power": (GOOD, FISHER, {"power": float("nan")}, "power=nan"),
    "zero Fisher": (GOOD, zero(FISHER), {}, "zero everywhere.*relative=False"),
    "singular": (GOOD, zero(FISHER), {"damping": 0.0}, "singular"),
}


# Would catch: gradients that come back as they are without a word.
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_named(misfit):
    gradients, fisher, options, said = MISFITS[misfit]
    with pytest.raises(fs.FisherscopeError, match=said):
        precondition(gradients, fisher, **options)


# Would catch: zero damping refused where it is fine.
def test_no_damping_is_fine_where_nothing_is_singular():
    v = vector(FISHER)
    found = precondition(v, FISHER, damping=0.0)
    np.testing.assert_allclose(
        flat(FISHER, found), dense_power(FISHER, 0.0, 1.0) @ flat(FISHER, v), rtol=1e-7
    )
