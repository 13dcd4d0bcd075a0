from __future__ import annotations

import numpy as np
import pytest

from analysis.spectrum.calibration import check_calibration
from analysis.spectrum.matrices import NAMES, SPECTRA, N, Watched, matrix, symmetric
from fisherscope.analysis.spectrum import log_determinant, trace_of_function
from fisherscope.analysis.spectrum.operand import Operand
from fisherscope.analysis.spectrum.probes import Stream, rademacher
from fisherscope.analysis.spectrum.quadrature import quadrature
from fisherscope.errors import NonFiniteError, ParameterError


def bump(x):
    return 1 / (1 + x**2)


# Would catch: eigenvalues in the wrong number, or weights that forget n.
@pytest.mark.parametrize("name", NAMES)
def test_exact_at_full_budget(name):
    watched = Watched(matrix(name))
    found = trace_of_function(watched, bump, probes=16, steps=10)
    assert found.value == pytest.approx(bump(SPECTRA[name]).sum(), rel=1e-12)
    assert (found.outcome, found.standard_error, found.truncation) == ("exact", 0.0, 0.0)
    assert found.products == N == sum(watched.widths) - 3
    found = log_determinant(matrix(name), damping=0.1, probes=16, steps=10)
    assert found.value == pytest.approx(np.log(SPECTRA[name] + 0.1).sum(), rel=1e-12)
    assert found.quantity == "log determinant"


# Would catch: a standard error over nodes instead of probes, one of a single probe, a bias.
@pytest.mark.parametrize("name", NAMES)
def test_calibration(name):
    options = {"probes": 9, "steps": 14}
    found = [trace_of_function(matrix(name), bump, **options, seed=s) for s in range(200)]
    check_calibration(found, bump(SPECTRA[name]).sum())
    assert {f.outcome for f in found} == {"estimated"}


@pytest.mark.parametrize("name", NAMES)
def test_log_determinant_is_calibrated(name):
    options = {"damping": 0.1, "probes": 9, "steps": 16}
    found = [log_determinant(matrix(name), **options, seed=s) for s in range(200)]
    check_calibration(found, np.log(SPECTRA[name] + 0.1).sum())
    assert {f.outcome for f in found} == {"estimated"}


# Would catch: quadrature that is not exact to its degree. Each probe gives zᵀA³z exactly.
def test_polynomials_are_exact_but_for_the_vectors():
    found = trace_of_function(matrix("flat"), lambda x: x**3, probes=4, steps=2)
    z = rademacher(0, Stream.PROBE, range(4), N)
    samples = (z * (np.linalg.matrix_power(matrix("flat"), 3) @ z)).sum(0)
    assert found.value == pytest.approx(samples.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(samples.std(ddof=1) / 2, rel=1e-9)


# Would catch: steps that go on through the whole space without becoming exact.
@pytest.mark.parametrize("name", NAMES)
def test_rules_of_all_steps_are_exact_for_their_vectors(name, monkeypatch):
    monkeypatch.setattr("fisherscope.analysis.spectrum.quadrature._DENSE", 0)
    rules = quadrature(Operand(Watched(matrix(name))), probes=3, steps=N, seed=2)
    values, vectors = np.linalg.eigh(matrix(name))
    shares = (vectors.T @ rademacher(2, Stream.PROBE, range(3), N)) ** 2
    samples, coarse = rules.traces(bump)
    np.testing.assert_allclose(samples, bump(values) @ shares, rtol=1e-11)
    np.testing.assert_allclose(coarse, samples, rtol=1e-11)
    assert not rules.exact


# Would catch: a truncation error that is taken for none, or measured against itself. Eight
# steps cannot follow a logarithm over five decades; its value is off by many standard errors.
def test_too_few_steps_are_said_to_be_too_few():
    a = symmetric(np.logspace(-5, 0, N))
    truth = np.log(np.logspace(-5, 0, N) + 1e-5).sum()
    few = log_determinant(a, damping=1e-5, probes=12, steps=8)
    assert few.outcome == "not_converged"
    assert abs(few.value - truth) > 5 * few.standard_error
    assert few.truncation > 5 * few.standard_error
    more = log_determinant(a, damping=1e-3, probes=3, steps=50)
    truth = np.log(np.logspace(-5, 0, N) + 1e-3).sum()
    assert more.outcome == "estimated"
    assert abs(more.value - truth) < 3 * more.standard_error


# Would catch: bases allocated for all probes at once.
def test_fewer_vectors_at_once_where_memory_is_short(monkeypatch):
    expected = trace_of_function(matrix("flat"), bump, probes=5, steps=8)
    monkeypatch.setattr("fisherscope.analysis.spectrum.quadrature._BASIS_BYTES", 8 * N * 8 * 2)
    watched = Watched(matrix("flat"))
    found = trace_of_function(watched, bump, probes=5, steps=8)
    assert max(watched.widths) == 2
    assert found.value == pytest.approx(expected.value, rel=1e-12)


# Would catch: a probe whose space closes early padding the others' rules, or padded by them.
def test_probes_of_unlike_length():
    a = np.diag(np.r_[np.ones(100), 2.0])
    a[:2, :2] += 0.5
    found = trace_of_function(a, np.sqrt, probes=4, steps=20)
    values = np.linalg.eigvalsh(a)
    assert found.outcome == "estimated"
    assert abs(found.value - np.sqrt(values).sum()) <= 3 * found.standard_error
    assert found.truncation < 1e-9


@pytest.mark.parametrize("damping", [-0.1, np.nan, np.inf])
def test_bad_damping_before_any_product(damping):
    watched = Watched(matrix("flat"))
    with pytest.raises(ParameterError, match="damping"):
        log_determinant(watched, damping=damping)
    assert not watched.widths


# Would catch: a logarithm of a negative number that ends as NaN.
@pytest.mark.parametrize("probes", [4, 20])
def test_an_operator_that_is_not_positive_is_refused(probes):
    a = symmetric(np.linspace(-1, 1, N))
    with pytest.raises(ParameterError, match="not positive definite.*raise the damping above"):
        log_determinant(a, damping=0.5, probes=probes, steps=10)
    with pytest.raises(NonFiniteError, match="not finite at"):
        trace_of_function(a, np.log, probes=probes, steps=10)


def test_bad_functions_and_budgets_are_named():
    with pytest.raises(ParameterError, match="array of the same length"):
        trace_of_function(matrix("flat"), np.sum, probes=4, steps=8)
    with pytest.raises(ParameterError, match="probes=1"):
        trace_of_function(matrix("flat"), np.exp, probes=1)
    with pytest.raises(ParameterError, match="steps=1"):
        trace_of_function(matrix("flat"), np.exp, steps=1)
