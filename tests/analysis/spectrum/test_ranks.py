from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.spectrum.calibration import check_calibration
from analysis.spectrum.matrices import NAMES, SPECTRA, N, matrix, symmetric
from fisherscope.analysis.spectrum import effective_rank, entropy_rank
from fisherscope.errors import ParameterError


def participation(spectrum):
    return spectrum.sum() ** 2 / (spectrum**2).sum()


def entropy(spectrum):
    p = np.abs(spectrum[spectrum != 0])
    p = p / p.sum()
    return math.exp(-(p * np.log(p)).sum())


# Would catch: the ratio upside down, squares of the trace and of the norm mixed up, a base-2
# entropy, a logarithm of zero.
@pytest.mark.parametrize("name", NAMES)
def test_exact_at_full_budget(name):
    found = effective_rank(matrix(name), products=N)
    assert found.value == pytest.approx(participation(SPECTRA[name]), rel=1e-12)
    assert (found.outcome, found.standard_error) == ("exact", 0)
    found = entropy_rank(matrix(name), probes=16, steps=10)
    assert found.value == pytest.approx(entropy(SPECTRA[name]), rel=1e-9)
    assert (found.outcome, found.standard_error) == ("exact", 0)


# Would catch: a standard error of one moment alone (they are correlated), of the plain ratio
# (biased), or one that is not over probes.
@pytest.mark.parametrize("name", [n for n in NAMES if n != "low_rank"])
def test_effective_rank_is_calibrated(name):
    found = [effective_rank(matrix(name), products=24, seed=s) for s in range(200)]
    check_calibration(found, participation(SPECTRA[name]))


@pytest.mark.parametrize("name", NAMES)
def test_entropy_rank_is_calibrated(name):
    found = [entropy_rank(matrix(name), probes=9, steps=16, seed=s) for s in range(200)]
    check_calibration(found, entropy(SPECTRA[name]))
    assert {f.outcome for f in found} == {"estimated"}


# Would catch: a subspace that is not used for the norm.
def test_the_rank_of_a_low_rank_operator_is_found_to_rounding():
    found = effective_rank(symmetric(np.r_[np.full(6, 2.0), np.zeros(N - 6)]), products=30)
    assert found.value == pytest.approx(6, abs=1e-10)
    assert found.standard_error < 1e-10


# Would catch: signs that cancel in the sum of magnitudes.
def test_entropy_of_an_indefinite_operator_is_of_magnitudes():
    spectrum = np.r_[np.full(4, -3.0), np.full(4, 3.0), np.zeros(N - 8)]
    found = entropy_rank(symmetric(spectrum), probes=16, steps=9)
    assert abs(found.value - 8) <= 3 * found.standard_error
    assert entropy_rank(symmetric(spectrum), probes=16, steps=10).value == pytest.approx(8)


@pytest.mark.parametrize("n", [3, N])
@pytest.mark.parametrize("of", [effective_rank, entropy_rank])
def test_a_zero_operator_has_no_rank(of, n):
    options = {"products": 16} if of is effective_rank else {"probes": 4, "steps": 4}
    found = of(np.zeros((n, n)), **options)
    assert found.outcome == "zero_operator"
    assert math.isnan(found.value)


def test_bad_budgets_are_named():
    with pytest.raises(ParameterError, match="products=3"):
        effective_rank(matrix("flat"), products=3)
    with pytest.raises(ParameterError, match="probes=1"):
        entropy_rank(matrix("flat"), probes=1)
