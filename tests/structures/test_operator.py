"""The explicit matrix and scipy's view of it."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, cg, eigsh

from fisherscope.errors import ParameterError
from fisherscope.structures.operator import LARGEST
from structures.fishers import build, scores
from structures.matrices import BLOCKWISE, CASES, explicit, make


@pytest.mark.parametrize("case", CASES)
def test_dense_crosses_its_batches(case, monkeypatch):
    # Catches: rows lost or repeated where one batch of unit vectors ends.
    fisher = make(case)
    whole = fisher.dense()
    assert (whole.dtype, tuple(whole.shape)) == (torch.float64, (fisher.n_parameters,) * 2)
    monkeypatch.setattr("fisherscope.structures.operator._ROWS", 5)
    torch.testing.assert_close(fisher.dense(), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.numpy(), explicit(fisher) / 5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_the_matrix(case):
    # Catches: another order of parameters than dense(), columns taken for rows, and an
    # adjoint that scipy can't find.
    fisher = make(case, dtype=torch.float32)
    operator, matrix = fisher.to_scipy(), explicit(fisher) / 5
    assert operator.shape == matrix.shape
    assert operator.dtype == np.float64
    rng = np.random.default_rng(0)
    x, many = rng.normal(size=len(matrix)), rng.normal(size=(len(matrix), 3))
    close = {"rtol": 2e-5, "atol": 2e-5}
    for transposed in (operator, operator.T, operator.H):
        np.testing.assert_allclose(transposed @ x, matrix @ x, **close)
        np.testing.assert_allclose(transposed @ many, matrix @ many, **close)
    np.testing.assert_allclose(operator.matvec(x[:, None]), matrix @ x[:, None], **close)
    np.testing.assert_allclose(operator.rmatvec(x), matrix @ x, **close)
    np.testing.assert_allclose(
        (operator + operator) @ x.astype(np.float32), 2 * matrix @ x, **close
    )


@pytest.mark.parametrize("case", BLOCKWISE)
def test_scipy_finds_the_spectrum(case):
    # Catches: an operator that is not symmetric, and a spectrum of something else.
    fisher = make(case)
    top = eigsh(fisher.to_scipy(), k=2, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(top), fisher.eigenvalues()[-2:].numpy(), rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_an_exact_inverse_makes_conjugate_gradients_converge_in_one_step(case, damping):
    # Catches: a solve that is off by a factor per block or by the damping: then a few steps
    # are needed.
    fisher = make(case)
    size, shapes = fisher.n_parameters, fisher.identity.parameters
    b = np.random.default_rng(1).normal(size=size)

    def inverse(x):
        parts = torch.from_numpy(x).split([int(np.prod(s)) for s in shapes.values()])
        v = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        solved = fisher.solve(v, damping=damping)
        return np.concatenate([solved[n].numpy().ravel() for n in shapes])

    identity = LinearOperator((size, size), matvec=lambda x: x, dtype=np.float64)
    preconditioner = LinearOperator((size, size), matvec=inverse, dtype=np.float64)
    steps = []
    x, failed = cg(
        fisher.to_scipy() + damping * identity, b, rtol=1e-8, M=preconditioner,
        callback=steps.append,
    )  # fmt: skip
    assert failed == 0
    assert len(steps) == 1
    matrix = explicit(fisher) / 5 + damping * np.eye(size)
    np.testing.assert_allclose(matrix @ x, b, rtol=1e-6, atol=1e-7)
    plain = []
    cg(fisher.to_scipy() + damping * identity, b, rtol=1e-8, callback=plain.append)
    assert len(plain) > 1


@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
def test_large_matrices_are_refused_by_their_size(structure):
    # Catches: half a terabyte asked for in passing.
    shapes = {"w": (LARGEST + 1, 1)}
    large = build(scores("a", shapes=shapes), structure="diagonal")
    with pytest.raises(ParameterError, match=rf"{LARGEST + 1} parameters.*0\.5 GiB.*to_scipy"):
        large.dense()
    assert build(scores("a"), structure=structure).dense().shape == (31, 31)
