"""Beside laplace-torch: its figures, recorded once, and itself where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs

# laplace-torch 0.3 (Daxberger et al. 2021), all weights, prior precision 2, one batch: what its
# log evidence adds to the log-likelihood, the variances of the first new row's logits, and the
# prior precision of largest evidence.
KNOWN = {
    "dense": ("full", -60.6796353, (1.47515975, 2.17874027, 2.73906971), 0.59255),
    "diagonal": ("diag", -74.0136061, (0.62167058, 1.87447502, 2.72317664), 0.96534),
    # Its biases have factors of their own.
    "kfac(bias=separate)": ("kron", -68.9279481, (1.25028933, 2.31884795, 2.74067857), 0.78948),
}


def case():
    rng = np.random.default_rng(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)))
    x, new = (torch.from_numpy(rng.standard_normal((n, 4))) for n in (60, 9))
    return model, x, torch.arange(60) % 3, new


def ours(structure, model, x, labels, new):
    fisher = fs.estimate(model, (x, labels), structure=structure, fisher_type="type-2",
                         progress=False)  # fmt: skip
    return fs.uncertainty(model, fisher, new, prior_precision=2.0), fs.uncertainty(
        model, fisher, new
    )


# Would catch: N dropped, a sum over tokens for one over examples, the prior added to the mean
# Fisher, logdets of another matrix, an evidence whose maximum is elsewhere.
@pytest.mark.parametrize("structure", KNOWN)
def test_recorded_figures(structure):
    _, occam, variances, precision = KNOWN[structure]
    fixed, best = ours(structure, *case())
    assert fixed.log_occam_factor == pytest.approx(occam, rel=1e-6)
    np.testing.assert_allclose(np.diagonal(fixed.covariance[0]), variances, rtol=1e-5)
    assert best.prior_precision == pytest.approx(precision, rel=1e-3)


# The same against the library itself, for whoever has it.
@pytest.mark.parametrize("structure", KNOWN)
def test_the_library_itself(structure):
    laplace = pytest.importorskip(
        "laplace", reason="laplace-torch, an optional oracle, is not installed"
    )
    model, x, labels, new = case()
    data = torch.utils.data.TensorDataset(x, labels)
    theirs = laplace.Laplace(
        model, "classification", "all", KNOWN[structure][0], prior_precision=2.0
    )
    theirs.fit(torch.utils.data.DataLoader(data, batch_size=len(data)))
    _, covariance = theirs._glm_predictive_distribution(new)
    fixed, _ = ours(structure, model, x, labels, new)
    np.testing.assert_allclose(fixed.covariance, covariance.detach().numpy(), rtol=1e-5, atol=1e-9)
    occam = float(theirs.log_marginal_likelihood() - theirs.log_likelihood)
    assert fixed.log_occam_factor == pytest.approx(occam, rel=1e-6)
