from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from analysis.spectrum.matrices import NAMES, SPECTRA, N, Watched, matrix, symmetric
from fisherscope.analysis.spectrum import spectral_density
from fisherscope.errors import ParameterError

OPTIONS = {"probes": 7, "steps": 20}
each = pytest.mark.parametrize("name", NAMES)


# Would catch: weights or a Gaussian that are not normalised, a grid that cuts the tails off
# or is coarser than the width.
@each
@pytest.mark.parametrize("options", [OPTIONS, {"probes": 2, "steps": 5}, {"probes": 8}])
def test_integrates_to_one(name, options):
    found = spectral_density(matrix(name), **options)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-12)
    assert (found.density >= 0).all() and (found.weights >= 0).all()


# Would catch: nodes of a basis that is not orthonormal, which leave the spectrum; a truncated
# run that misses its ends, which Lanczos finds first.
@each
def test_brackets_the_spectrum(name):
    found = spectral_density(matrix(name), **OPTIONS)
    low, high = SPECTRA[name].min(), SPECTRA[name].max()
    rounding = 1e-12 * high
    assert found.outcome == "estimated"
    assert low - rounding <= found.nodes.min() <= low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) <= found.nodes.max() <= high + rounding
    assert found.grid[0] < low and found.grid[-1] > high
    assert found.nodes.shape[0] == 7 and found.nodes.shape[1] <= 20
    assert found.products <= 7 * 20


# Would catch: any estimate where all eigenvalues were affordable.
@each
def test_exact_at_full_budget(name):
    found = spectral_density(matrix(name), probes=8, steps=20)
    np.testing.assert_allclose(found.nodes, np.sort(SPECTRA[name])[None], atol=1e-12)
    kernel = norm.pdf(found.grid[:, None], SPECTRA[name], found.width)
    np.testing.assert_allclose(found.density, kernel.mean(1), atol=1e-10 / found.width)
    assert (found.outcome, found.products) == ("exact", N)
    assert not found.standard_error.any()


# Would catch: a density that is right in total only; an error bar of a single probe.
@each
def test_truth_within_the_error_bars(name):
    width = 0.15 * np.ptp(SPECTRA[name])
    grid = np.linspace(-width, SPECTRA[name].max() + width, 25)
    truth = norm.pdf(grid[:, None], SPECTRA[name], width).mean(1)
    z = []
    for seed in range(40):
        found = spectral_density(matrix(name), **OPTIONS, seed=seed, grid=grid, width=width)
        # What the steps leave out is of no account for so wide a kernel.
        z.append((found.density - truth) / (found.standard_error + 1e-4 * truth.max()))
    z = np.abs(z)
    assert 0.80 <= (z <= 2).mean() <= 0.995
    assert (z <= 3).mean() >= 0.92


def test_two_clusters_with_their_shares():
    # Would catch: weights that do not belong to their nodes.
    found = spectral_density(matrix("clusters"), **OPTIONS)
    share, error = found.cumulative(5.0)
    assert abs(share - (N - 20) / N) <= 3 * error
    assert 0 < error < 0.05
    assert found.cumulative(0.0) == (0.0, 0.0)
    assert found.cumulative(20.0)[0] == pytest.approx(1)
    frame = found.to_frame()
    between = frame[(frame["eigenvalue"] > 4) & (frame["eigenvalue"] < 7)]
    assert between["density"].max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_multiple_of_the_identity_is_one_peak(value):
    # Would catch: a width of zero.
    found = spectral_density(value * np.eye(300), probes=3, steps=10)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-9)
    assert found.grid[found.density.argmax()] == pytest.approx(value, abs=found.width)
    assert found.products == 3


# Would catch: a kernel that is evaluated in pieces which don't fit together.
def test_a_long_grid(monkeypatch):
    grid = np.linspace(0, 2, 101)
    whole = spectral_density(matrix("flat"), **OPTIONS, grid=grid)
    monkeypatch.setattr("fisherscope.analysis.spectrum.density._CHUNK", 130)
    np.testing.assert_allclose(
        spectral_density(matrix("flat"), **OPTIONS, grid=grid).density, whole.density
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 0.0}, "width=0.0"),
        ({"width": np.inf}, "width=inf"),
        ({"grid": [1.0, 1.0]}, "ascending"),
        ({"grid": [[1.0]]}, "vector"),
        ({"grid": [np.nan]}, "finite"),
        ({"grid": []}, "vector"),
    ],
)
def test_bad_arguments_before_any_product(options, says):
    watched = Watched(symmetric(SPECTRA["flat"]))
    with pytest.raises(ParameterError, match=says):
        spectral_density(watched, **options)
    assert not watched.widths
