from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import fisherscope.analysis.spectrum as spectrum
from analysis.spectrum.matrices import N, Watched, matrix
from fisherscope.analysis.spectrum.operand import Operand, symmetric_operand
from fisherscope.errors import NonFiniteError, ParameterError

ESTIMATORS = {
    "top_eigenpairs": lambda a, **o: spectrum.top_eigenpairs(a, 3, **o),
    "spectral_density": lambda a, **o: spectrum.spectral_density(a, probes=4, steps=8, **o),
    "hutchinson": lambda a, **o: spectrum.trace(a, method="hutchinson", products=24, **o),
    "hutch++": lambda a, **o: spectrum.trace(a, method="hutch++", products=24, **o),
    "xtrace": lambda a, **o: spectrum.trace(a, method="xtrace", products=24, **o),
    "trace_of_function": lambda a, **o: spectrum.trace_of_function(
        a, np.exp, probes=4, steps=8, **o
    ),
    "log_determinant": lambda a, **o: spectrum.log_determinant(
        a, damping=0.1, probes=4, steps=8, **o
    ),
    "effective_rank": lambda a, **o: spectrum.effective_rank(a, products=24, **o),
    "entropy_rank": lambda a, **o: spectrum.entropy_rank(a, probes=4, steps=8, **o),
}


class _Structure:
    """As the Fisher structures will look."""

    def __init__(self, a):
        self.a = a

    def to_scipy(self):
        return aslinearoperator(self.a)


# Would catch: products left in float32 or int, a structure whose to_scipy() is overlooked, a
# block that is multiplied from the wrong side.
@pytest.mark.parametrize(
    "wrap",
    [np.array, aslinearoperator, scipy.sparse.csr_array, _Structure, lambda a: a.astype("f4")],
    ids=["array", "operator", "sparse", "to_scipy", "float32"],
)
def test_every_kind_of_operand(wrap):
    a = np.arange(12.0).reshape(4, 3) @ np.arange(12.0).reshape(3, 4)
    found = spectrum.as_linear_operator(wrap(a))
    x = np.random.default_rng(0).standard_normal((4, 2))
    assert found.dtype == np.float64
    assert found.matmat(x).dtype == np.float64
    np.testing.assert_allclose(found.matmat(x), a @ x, rtol=1e-6)
    np.testing.assert_allclose(found.matvec(x[:, 0]), a @ x[:, 0], rtol=1e-6)


def test_integers_become_floats():
    assert spectrum.trace(np.array([[2, 1], [1, 3]])).value == 5.0


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        (np.ones((3, 4)), "(3, 4)"),
        (np.ones(3), "(1, 3)"),
        (np.zeros((0, 0)), "(0, 0)"),
        (np.eye(3) * 1j, "complex"),
        (np.ones((2, 2, 2)), "ndarray"),
        ("a matrix", "str"),
    ],
)
def test_what_is_no_square_real_operator_is_named(operator, says):
    with pytest.raises(ParameterError, match=re.escape(says)):
        spectrum.as_linear_operator(operator)


# Would catch: an estimator that skips the check, and answers for the symmetric part of a
# matrix that has none (XTrace is then biased, ARPACK and Lanczos are meaningless).
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_operator_that_is_not_symmetric_is_refused_at_once(name):
    watched = Watched(np.triu(matrix("flat")) + 0.5 * np.eye(N))
    with pytest.raises(ParameterError, match="not symmetric"):
        ESTIMATORS[name](watched)
    assert sum(watched.widths) == 3


# Would catch: a check within one product only, which every fresh but symmetric matrix passes.
def test_an_operator_that_changes_between_calls_is_refused():
    rng = np.random.default_rng(0)

    def product(x):
        g = rng.standard_normal((N, 4))
        return g @ (g.T @ x)

    changing = LinearOperator((N, N), matvec=product, matmat=product, dtype=float)
    with pytest.raises(ParameterError, match="the same at every call"):
        spectrum.trace(changing)


# Would catch: a tolerance that refuses what rounding leaves of a symmetric operator in
# single precision, or of one whose eigenvalues span fifteen decades.
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", ["geometric", "clusters"])
def test_rounding_is_no_asymmetry(name, size):
    rng = np.random.default_rng(1)
    noise = 1 + 1e-6 * rng.standard_normal((N, N))
    for seed in range(20):
        symmetric_operand(size * matrix(name) * noise, block_size=None, seed=seed)


# Would catch: a NaN that ends as the outcome "not_converged" or as a NaN with an error bar.
@pytest.mark.parametrize("name", ESTIMATORS)
def test_non_finite_products_are_refused(name):
    a = matrix("flat").copy()
    a[3, 4] = a[4, 3] = np.nan
    with pytest.raises(NonFiniteError, match="operator"):
        ESTIMATORS[name](a)


def test_a_product_of_the_wrong_shape_is_refused():
    class Summing(LinearOperator):
        def _matmat(self, X):
            return X.sum(1, keepdims=True)

    with pytest.raises(ParameterError, match="one column per column"):
        spectrum.trace(Summing(float, (N, N)))


# Would catch: blocks cut wrongly at the end, or products that are counted per call.
def test_blocks_and_count():
    watched = Watched(matrix("flat"))
    operand = Operand(watched, block_size=5)
    x = np.random.default_rng(0).standard_normal((N, 12))
    np.testing.assert_allclose(operand.matmat(x), matrix("flat") @ x, atol=1e-13)
    assert watched.widths == [5, 5, 2]
    assert operand.products == 12
    np.testing.assert_allclose(operand.dense(), matrix("flat"), atol=1e-15)
    assert operand.products == 12 + N


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 0.5}, {"block_size": 0}])
def test_seed_and_block_size_are_checked_before_any_product(name, wrong):
    watched = Watched(matrix("flat"))
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        ESTIMATORS[name](watched, **wrong)
    assert not watched.widths
