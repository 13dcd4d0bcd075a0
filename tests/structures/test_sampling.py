"""Draws from N(0, (F + damping)^-1) of every structure against the explicit covariance."""

import math

import numpy as np
import pytest
import torch

from fisherscope.errors import ParameterError
from structures.matrices import CASES, explicit, make

N = 20_000
DAMPING = 0.5


def draws(fisher, n=N, **options) -> np.ndarray:
    found = fisher.sample(n, damping=DAMPING, **options)
    assert list(found) == list(fisher.identity.parameters)
    return np.concatenate([t.double().numpy().reshape(n, -1) for t in found.values()], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_whitened_draws_are_standard_normal(case, dtype):
    # Catches: precision taken for covariance, a missing square root, noise not rotated back,
    # and one noise for all blocks. Whitened by the exact Cholesky factor, each entry of the
    # mean has standard deviation 1/sqrt(N), of the covariance 1/sqrt(N) (2/N on the
    # diagonal): of at most 36**2 entries none is further off than 6 of these.
    fisher = make(case, dtype=dtype)
    precision = explicit(fisher) / 5 + DAMPING * np.eye(fisher.n_parameters)
    white = draws(fisher) @ np.linalg.cholesky(precision)
    assert np.abs(white.mean(0)).max() < 6 / math.sqrt(N)
    off = white.T @ white / N - np.eye(white.shape[1])
    assert np.abs(off).max() < 6 * math.sqrt(2 / N)


@pytest.mark.parametrize("case", CASES)
def test_draws_are_keyed_by_their_seed_alone(case):
    # Catches: the global random state used or changed, and a seed that is ignored.
    fisher = make(case)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = draws(fisher, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(draws(fisher, 3), one)
    assert not np.allclose(draws(fisher, 3, seed=1), one)
    assert {t.dtype for t in make(case, dtype=torch.float32).sample(damping=1.0).values()} == {
        torch.float32
    }


@pytest.mark.parametrize("case", CASES)
def test_unusable_numbers_are_named(case):
    # Catches: empty results and a TypeError from the depths.
    fisher = make(case)
    for wrong in ({"n": 0}, {"n": 2.0}, {"n": True}, {"seed": -1}, {"seed": None}):
        with pytest.raises(ParameterError, match=f"{next(iter(wrong))}="):
            fisher.sample(**{"n": 1, "damping": 1.0, **wrong})
    with pytest.raises(ParameterError, match="damping=-1"):
        fisher.sample(damping=-1)
