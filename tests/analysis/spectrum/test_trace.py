from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from analysis.spectrum.calibration import check_calibration
from analysis.spectrum.matrices import NAMES, SPECTRA, N, Watched, matrix, symmetric
from fisherscope.analysis.spectrum import trace
from fisherscope.analysis.spectrum.operand import Operand
from fisherscope.analysis.spectrum.probes import Stream, gaussian
from fisherscope.analysis.spectrum.xtrace import xtrace
from fisherscope.errors import ParameterError

METHODS = ("hutchinson", "hutch++", "xtrace")
each = pytest.mark.parametrize("method", METHODS)
BUDGET = 24


# Would catch: an estimate where the whole matrix was affordable, a last block left out.
@each
@pytest.mark.parametrize("products", [N, N + 1000])
@pytest.mark.parametrize("name", NAMES)
def test_exact_at_full_budget(name, products, method):
    watched = Watched(matrix(name))
    found = trace(watched, method=method, products=products, block_size=37)
    assert found.value == pytest.approx(SPECTRA[name].sum(), rel=1e-13)
    assert (found.outcome, found.standard_error, found.samples) == ("exact", 0.0, 0)
    assert found.products == N == sum(watched.widths) - 3


# Would catch: a bias (of the left-out term, of the dimension in the normalisation, of a sketch
# that is used twice), a standard error that is too small or much too large. The spread over √m
# of XTrace covers 80% here at two standard errors, and fails.
@pytest.mark.parametrize(
    ("name", "method"),
    # Of the operator of low rank the other methods leave nothing to estimate, see below.
    [("low_rank", "hutchinson"), *product([n for n in NAMES if n != "low_rank"], METHODS)],
)
def test_calibration(name, method):
    found = [trace(matrix(name), method=method, products=BUDGET, seed=s) for s in range(200)]
    check_calibration(found, SPECTRA[name].sum())
    assert {f.outcome for f in found} == {"estimated"}
    assert {f.products for f in found} == {BUDGET}


# Would catch: a singular R that is inverted, a basis that loses the range of the operator.
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_low_rank_is_exact_to_rounding(rank, method):
    spectrum = np.r_[np.arange(rank, 0.0, -1.0), np.zeros(N - rank)]
    for seed in range(20):
        found = trace(symmetric(spectrum), method=method, products=BUDGET, seed=seed)
        assert found.value == pytest.approx(spectrum.sum(), abs=1e-12)
        assert found.standard_error < 1e-12


# Would catch: a sketch that captures nothing (of random vectors instead of products, or with
# Q transposed), so that two thirds of the budget are wasted.
def test_hutchpp_and_xtrace_beat_hutchinson_where_eigenvalues_decay():
    errors = {
        method: np.array([
            trace(matrix("geometric"), method=method, products=BUDGET, seed=s).value
            for s in range(100)
        ])
        - SPECTRA["geometric"].sum()
        for method in METHODS
    }
    mse = {method: (e**2).mean() for method, e in errors.items()}
    assert mse["hutch++"] < 0.5 * mse["hutchinson"]
    assert mse["xtrace"] < 0.15 * mse["hutchinson"]


# Would catch: anything wrong in the compressed formulas of XTrace: here the bases without
# vector i, and those without i and j, are made one by one from the matrix itself. Also pairs
# that are taken among some of the vectors but averaged over all.
@pytest.mark.parametrize(("m", "paired"), [(2, 32), (3, 32), (8, 32), (8, 5)])
def test_xtrace_against_its_definition(m, paired, monkeypatch):
    monkeypatch.setattr("fisherscope.analysis.spectrum.xtrace._PAIRED", paired)
    a = matrix("geometric")
    samples, variance = xtrace(Operand(Watched(a)), m, seed=4)
    omega = gaussian(4, Stream.PROBE, range(m), N)

    def basic(i, left):
        kept = [k for k in range(m) if k not in {i, *left}]
        q = np.linalg.qr(a @ omega[:, kept])[0] if kept else np.zeros((N, 0))
        rest = omega[:, i] - q @ (q.T @ omega[:, i])
        rest *= math.sqrt(N - len(kept)) / np.linalg.norm(rest)
        return np.trace(q.T @ a @ q) + rest @ a @ rest

    expected = np.array([basic(i, set()) for i in range(m)])
    np.testing.assert_allclose(samples, expected, rtol=1e-10)
    among = range(min(m, paired))
    change = np.array([[expected[i] - basic(i, {j}) for j in among] for i in among])
    covariance = (change * change.T).sum() - (np.diag(change) ** 2).sum()
    covariance = max(0.0, covariance / (len(among) * (len(among) - 1)))
    assert variance == pytest.approx(expected.var(ddof=1) / m + covariance, rel=1e-8)


# Would catch: signs that are not signs: for a diagonal matrix each of them gives the trace.
def test_hutchinson_is_exact_on_a_diagonal_matrix():
    found = trace(np.diag(np.arange(100.0)), method="hutchinson", products=2)
    assert found.value == pytest.approx(4950)
    assert found.standard_error < 1e-10


# Would catch: formulas that take the operator for positive.
@each
def test_indefinite_operators(method):
    spectrum = np.linspace(-1, 0.5, N)
    found = [trace(symmetric(spectrum), method=method, products=16, seed=s) for s in range(200)]
    check_calibration(found, spectrum.sum())


# Would catch: an odd budget that is overdrawn.
@pytest.mark.parametrize(("method", "used"), [("hutchinson", 9), ("hutch++", 9), ("xtrace", 8)])
def test_odd_budgets(method, used):
    watched = Watched(matrix("flat"))
    assert trace(watched, method=method, products=9).products == used
    assert sum(watched.widths) == used + 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "xnystrace"}, "xnystrace.*hutch"),
        ({"products": 3}, "products=3.*at least 4"),
        ({"products": 1, "method": "hutchinson"}, "at least 2"),
        ({"products": 7.5}, "7.5"),
    ],
)
def test_bad_arguments_before_any_product(options, says):
    watched = Watched(matrix("flat"))
    with pytest.raises(ParameterError, match=says):
        trace(watched, **options)
    assert not watched.widths
