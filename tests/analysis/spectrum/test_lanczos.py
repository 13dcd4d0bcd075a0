from __future__ import annotations

import numpy as np
import pytest

from analysis.spectrum.matrices import NAMES, SPECTRA, N, Watched, basis, matrix, symmetric
from fisherscope.analysis.spectrum.lanczos import tridiagonalise
from fisherscope.analysis.spectrum.operand import Operand

STEPS = (1, 2, 9, 60, N)


def _run(a, steps, starts=None):
    if starts is None:
        starts = np.random.default_rng(5).standard_normal((len(a), 3))
    return starts, tridiagonalise(Operand(Watched(a)), starts, steps)


def _t(found):
    off = found.offdiagonal
    return np.diag(found.diagonal) + np.diag(off, 1) + np.diag(off, -1)


# Would catch: an off-diagonal that is shifted or has the wrong sign, a residual that is
# normalised, a lockstep that mixes up its starts.
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_three_term_relation(name, steps):
    a = matrix(name)
    starts, runs = _run(a, steps)
    for start, found in zip(starts.T, runs, strict=True):
        k = len(found.diagonal)
        left = a @ found.basis.T - found.basis.T @ _t(found)
        right = np.zeros((N, k))
        right[:, -1] = found.residual
        np.testing.assert_allclose(left, right, atol=1e-13 * np.linalg.norm(a, 2))
        np.testing.assert_allclose(found.basis[0], start / np.linalg.norm(start), atol=1e-15)
        assert k == steps or found.closed
        if found.closed:
            assert np.linalg.norm(found.residual) <= 1e-12 * np.linalg.norm(a, 2)


# Would catch: no reorthogonalisation, or against the last two vectors only: then vectors
# turn back to the directions that have converged, and eigenvalues come back as copies.
@pytest.mark.parametrize("name", NAMES)
def test_the_basis_stays_orthonormal(name):
    for found in _run(matrix(name), N)[1]:
        gram = found.basis @ found.basis.T
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)


def test_an_operator_of_low_rank_has_no_ghosts():
    # Would catch: a run that goes on in the rounding errors of a closed subspace without
    # orthogonalising them, which brings the largest eigenvalues back as copies.
    for found in _run(matrix("low_rank"), 40)[1]:
        nodes, weights = found.quadrature()
        assert found.closed
        assert len(nodes) <= 8
        np.testing.assert_allclose(nodes[-5:], [1, 2, 3, 4, 5], atol=1e-12)
        np.testing.assert_allclose(nodes[:-5], 0, atol=1e-12)
        assert weights[:-5].sum() > 0.9


# Would catch: a last step that is left out, or one that goes past the whole space.
@pytest.mark.parametrize("name", ["flat", "clusters"])
@pytest.mark.parametrize("steps", [N, N + 50])
def test_all_steps_are_a_whole_eigendecomposition(name, steps):
    for found in _run(matrix(name), steps)[1]:
        assert found.closed
        np.testing.assert_allclose(
            found.quadrature()[0], np.sort(SPECTRA[name]), atol=1e-11 * SPECTRA[name].max()
        )


def test_starts_that_close_early_leave_the_others_alone():
    # Would catch: a division by the zero norm, a start that ends all, columns that slip.
    a, q = matrix("flat"), basis()
    long = np.random.default_rng(1).standard_normal(N)
    starts = np.column_stack([q[:, 3], long, q[:, 0] + q[:, 7]])
    _, (one, whole, two) = _run(a, 20, starts)
    assert len(one.diagonal) == 1 and one.closed
    assert len(whole.diagonal) == 20 and not whole.closed
    np.testing.assert_allclose(one.quadrature()[0], SPECTRA["flat"][3])
    nodes, weights = two.quadrature()
    np.testing.assert_allclose(nodes[weights > 1e-12], SPECTRA["flat"][[7, 0]])
    np.testing.assert_allclose(weights[weights > 1e-12], [0.5, 0.5])
    _, (alone,) = _run(a, 20, long[:, None])
    np.testing.assert_allclose(alone.diagonal, whole.diagonal, atol=1e-13)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_multiples_of_the_identity(value):
    for found in _run(value * np.eye(30), 10)[1]:
        assert found.closed
        nodes, weights = found.quadrature()
        np.testing.assert_allclose(nodes, [value], atol=1e-14)
        np.testing.assert_allclose(weights, [1])


# Would catch: weights from the last row or another eigenvector, nodes and weights that are
# sorted apart, a coarse rule with more or fewer rows than said.
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_rules_are_exact_to_their_degree_and_not_beyond(steps):
    a = symmetric(np.linspace(-1, 1.5, 30))
    starts, runs = _run(a, 8)
    for start, found in zip(starts.T, runs, strict=True):
        v = start / np.linalg.norm(start)
        nodes, weights = found.quadrature(steps)
        assert len(nodes) == steps
        for degree in range(2 * steps):
            truth = v @ np.linalg.matrix_power(a, degree) @ v
            assert weights @ nodes**degree == pytest.approx(truth, abs=1e-12)
        truth = v @ np.linalg.matrix_power(a, 2 * steps) @ v
        assert abs(weights @ nodes ** (2 * steps) - truth) > 1e-6


# Would catch: anything wrong in the rule of all steps: it is vᵀ f(A) v for every f.
@pytest.mark.parametrize("name", NAMES)
def test_the_rule_of_all_steps_is_exact_for_any_function(name):
    starts, runs = _run(matrix(name), N)
    q = basis()
    for start, found in zip(starts.T, runs, strict=True):
        share = (q.T @ start) ** 2 / (start @ start)
        nodes, weights = found.quadrature()
        for f in (np.exp, lambda x: np.log(np.abs(x) + 0.01), np.arctan):
            assert weights @ f(nodes) == pytest.approx(share @ f(SPECTRA[name]), abs=1e-10)
