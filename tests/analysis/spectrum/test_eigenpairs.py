from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
from scipy.sparse.linalg import LinearOperator

from analysis.spectrum.matrices import NAMES, SPECTRA, N, Watched, basis, matrix, symmetric
from fisherscope.analysis.spectrum import top_eigenpairs
from fisherscope.errors import ParameterError


def check(found, a, spectrum, k, tolerance=1e-6):
    expected = np.sort(spectrum)[::-1][:k]
    size = np.abs(spectrum).max()
    np.testing.assert_allclose(found.eigenvalues, expected, atol=tolerance * size + 1e-300)
    v = found.eigenvectors
    np.testing.assert_allclose(v.T @ v, np.eye(k), atol=1e-8)
    np.testing.assert_allclose(
        found.residuals, np.linalg.norm(a @ v - v * found.eigenvalues, axis=0), atol=1e-12 * size
    )
    assert (found.residuals <= tolerance * size).all()
    assert (v[np.abs(v).argmax(0), range(k)] > 0).all()


# Would catch: the wrong end of the spectrum, ascending order, vectors and values sorted apart,
# a multiple eigenvalue found once.
@pytest.mark.parametrize("k", [1, 5, 12, N - 2, N - 1, N])
@pytest.mark.parametrize("name", NAMES)
def test_top_of_each_spectrum(name, k):
    found = top_eigenpairs(matrix(name), k)
    check(found, matrix(name), SPECTRA[name], k)
    assert found.outcome == ("exact" if 2 * k + 1 >= N else "converged")


# Would catch: ARPACK passing over an eigenvalue near zero (its tolerance is relative to each):
# of 0, -1, -2, ... it answers -1 and -2 for the top two, and calls them converged. Also copies
# of a multiple eigenvalue, zeros of an operator of low rank, and a shift that leaves nothing.
@pytest.mark.parametrize(
    "spectrum",
    [
        -np.arange(50.0),
        np.r_[np.full(10, 5.0), np.full(90, 1.0)],
        np.r_[np.full(3, 5.0), np.full(90, -1e-9)],
        np.ones(60),
        -np.ones(60),
        np.zeros(60),
        np.linspace(-1, 0.1, 80),
        np.r_[-100.0, np.linspace(-1, 1, 79)],
    ],
    ids=["negative", "multiple", "low-rank", "identity", "minus", "zero", "indefinite", "outlier"],
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [2, 4, 12])
def test_hard_spectra(spectrum, k, seed):
    a = symmetric(spectrum)
    found = top_eigenpairs(a, k, seed=seed)
    check(found, a, spectrum, k)
    assert found.outcome == "converged"


# Would catch: vectors that are right up to a rotation among different eigenvalues.
def test_vectors_are_the_eigenvectors():
    found = top_eigenpairs(matrix("geometric"), 4, tolerance=1e-10)
    overlap = np.abs(basis()[:, :4].T @ found.eigenvectors)
    np.testing.assert_allclose(overlap, np.eye(4), atol=1e-8)


# Would catch: ARPACK going on from a vector of its own where the Krylov space closes: recent
# versions of scipy draw it anew in each call unless they are given a generator.
def test_arpack_is_given_a_seeded_generator(monkeypatch):
    given = []

    def eigsh(*args, rng=None, **options):
        given.append(rng)
        return scipy.sparse.linalg.eigsh(*args, **options)

    monkeypatch.setattr("fisherscope.analysis.spectrum.eigenpairs.eigsh", eigsh)
    for seed in (2, 2, 3):
        top_eigenpairs(matrix("flat"), 4, seed=seed)
    first, again, other = (rng.standard_normal() for rng in given)
    assert first == again != other


# Would catch: a tolerance that is not passed on.
def test_a_looser_tolerance_takes_fewer_products():
    tight, loose = (top_eigenpairs(matrix("flat"), 2, tolerance=t) for t in (1e-10, 1e-2))
    assert loose.products < tight.products
    assert tight.residuals.max() <= 1.5e-10


# Would catch: an ArpackNoConvergence that escapes, or pairs that pretend to have converged.
def test_giving_up_is_an_outcome():
    a = symmetric(np.linspace(0.99, 1, 600))
    found = top_eigenpairs(a, 3, tolerance=1e-12, max_restarts=1)
    assert found.outcome == "not_converged"
    assert len(found.eigenvalues) == len(found.residuals) == len(found.to_frame()) < 3
    assert found.products < 100


# Would catch: ARPACK's word taken for the products: its recurrence does not see their noise.
def test_noise_in_the_products_is_seen_by_the_residuals():
    a, rng = matrix("geometric"), np.random.default_rng(0)

    def noisy(x):
        product = a @ x
        return product + 1e-4 * np.abs(product).max() * rng.standard_normal(product.shape)

    operator = LinearOperator((N, N), matvec=noisy, matmat=noisy, dtype=float)
    found = top_eigenpairs(operator, 3, tolerance=1e-8)
    assert found.outcome == "not_converged"
    assert found.residuals.max() > 1e-5
    assert top_eigenpairs(operator, 3, tolerance=0.01).outcome == "converged"


def test_one_by_one():
    found = top_eigenpairs(np.array([[-3.0]]), 1)
    assert found.to_frame().to_dict("list") == {"rank": [1], "eigenvalue": [-3], "residual": [0]}
    assert found.outcome == "exact"


@pytest.mark.parametrize(
    ("options", "says", "products"),
    [
        ({"k": 0}, "k=0", 3),
        ({"k": N + 1}, f"k={N + 1}.*{N}", 3),
        ({"tolerance": 0.0}, "tolerance=0.0", 0),
        ({"tolerance": np.nan}, "tolerance=nan", 0),
        ({"max_restarts": 0}, "max_restarts=0", 0),
    ],
)
def test_bad_arguments_before_long_work(options, says, products):
    watched = Watched(matrix("flat"))
    with pytest.raises(ParameterError, match=says):
        top_eigenpairs(watched, **options)
    assert sum(watched.widths) == products
