import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.structures.eigen import _error, symmetric_eigen


def moments(size, rank, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(rank, size, generator=g, dtype=torch.float64)
    return (scores.T @ scores).to(dtype)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), rank=st.integers(0, 14), log=st.integers(-12, 12))
def test_decomposition_ranks_and_signs(size, rank, log):
    # Catches: eigenvectors in rows, negative rounding left in, and ranks that depend on scale.
    matrix = moments(size, rank) * 10.0**log
    found = symmetric_eigen(matrix, "m")
    again = found.vectors @ torch.diag(found.values) @ found.vectors.T
    torch.testing.assert_close(again, matrix, rtol=1e-9, atol=1e-12 * 10.0**log * size**2)
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(found.vectors.T @ found.vectors, eye, rtol=0, atol=1e-12)
    assert (found.values >= 0).all()
    assert found.values.dtype == found.vectors.dtype == torch.float64
    assert found.rank == min(size, rank)


@pytest.mark.parametrize("size", [3, 40, 200])
def test_float32_sums_have_the_rank_of_their_rounding(size):
    # Catches: noise of float32 sums taken for information, because float64 resolves it.
    sums = sum(moments(size, 1, seed=i, dtype=torch.float32) for i in range(size - 1))
    found = symmetric_eigen(sums, "m")
    assert found.rank < size
    assert (found.values >= 0).all()
    assert symmetric_eigen(sums + torch.eye(size), "m").rank == size


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda m: m * np.nan, NonFiniteError, r"w:inputs\.0 holds NaN"),
        (lambda m: m / 0, NonFiniteError, r"w:inputs\.0 holds NaN or infinite"),
        (lambda m: -m, ParameterError, r"w:inputs\.0 has the negative eigenvalue -"),
        (lambda m: m - 2e-3 * m.trace() * torch.eye(4), ParameterError, "negative eigenvalue"),
        (lambda m: m.tril(), ParameterError, r"w:inputs\.0 is not symmetric"),
        (lambda m: m + 2e-3 * m.max() * torch.eye(4)[:, [1, 2, 3, 0]], ParameterError, "mirror"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_sum_of_outer_products_is_named(spoil, error, said, dtype):
    # Catches: LAPACK reading one triangle of a matrix that is not symmetric, square roots of
    # negative numbers, and a factor that nobody can find.
    with pytest.raises(error, match=said):
        symmetric_eigen(spoil(moments(4, 2, dtype=dtype)), "w:inputs.0")


def test_asymmetric_rounding_is_averaged_away():
    # Catches: refusing matrices whose halves were rounded differently.
    matrix = moments(6, 9, dtype=torch.float32)
    rounded = matrix * (1 + 1e-7 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    found = symmetric_eigen(rounded, "m")
    again = found.vectors @ torch.diag(found.values) @ found.vectors.T
    torch.testing.assert_close(again.float(), (rounded + rounded.T) / 2)


def failing(*args, **kwargs):
    raise torch.linalg.LinAlgError("did not converge")


def wrong(matrix):
    # Converged, says the driver; but one vector is off by a millionth.
    values, vectors = np.linalg.eigh(matrix.numpy())
    vectors[0, 0] += 1e-6
    return torch.from_numpy(values), torch.from_numpy(vectors)


@pytest.mark.parametrize("column", range(0, 40, 3))
def test_no_single_eigenvector_escapes_the_check(column):
    # Catches: probes that miss a direction, and a residual or a skew that isn't looked at: the
    # unit matrix has no residual whatever the vectors are, a wrong eigenvalue no skew.
    eye = torch.eye(40, dtype=torch.float64)
    twice = eye.clone()
    twice[:, column] = eye[:, column - 1]
    assert (
        _error(eye, torch.ones(40, dtype=torch.float64), eye)
        <= 1
        < _error(eye, torch.ones(40, dtype=torch.float64), twice)
    )
    matrix = moments(40, 60)
    values, vectors = torch.linalg.eigh(matrix)
    assert _error(matrix, values, vectors) <= 1
    values[column] += 1e-9 * values[-1]
    assert _error(matrix, values, vectors) > 1


@pytest.mark.parametrize("first", [failing, wrong])
def test_another_driver_takes_over(monkeypatch, first):
    # Catches: one LAPACK driver's failure ending hours of work, and an unchecked result.
    drivers = []
    real = scipy.linalg.eigh

    def second(matrix, driver):
        drivers.append(driver)
        if driver == "evr":
            raise np.linalg.LinAlgError("not here either")
        return real(matrix, driver=driver)

    monkeypatch.setattr(torch.linalg, "eigh", first)
    monkeypatch.setattr(scipy.linalg, "eigh", second)
    matrix = moments(5, 7)
    found = symmetric_eigen(matrix, "m")
    assert drivers == ["evr", "ev"]
    torch.testing.assert_close(found.vectors @ torch.diag(found.values) @ found.vectors.T, matrix)


def test_when_all_drivers_fail_the_factor_is_named(monkeypatch):
    # Catches: a bare LinAlgError without the name.
    monkeypatch.setattr(torch.linalg, "eigh", wrong)

    def none(matrix, driver):
        raise np.linalg.LinAlgError(f"{driver} gave up")

    monkeypatch.setattr(scipy.linalg, "eigh", none)
    with pytest.raises(ParameterError, match=r"of w:g\.0 \(5 x 5\) failed: residual .*evr gave up"):
        symmetric_eigen(moments(5, 7), "w:g.0")
