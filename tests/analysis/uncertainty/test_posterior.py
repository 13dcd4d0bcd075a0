"""The posterior against exact Bayesian linear regression."""

import dataclasses

import numpy as np
import pytest
import torch

import fisherscope as fs
from analysis.uncertainty.linear import Bayesian, real, regression
from fisherscope.analysis.uncertainty.posterior import Posterior, prior_distance
from fisherscope.errors import ParameterError


def dense(known: Bayesian, **options) -> tuple[torch.nn.Module, fs.Fisher]:
    model = known.model()
    data = real(known.x, known.y)
    options = {"structure": "dense", "fisher_type": "type-2", "progress": False, **options}
    return model, fs.estimate(model, data, **options)


# Would catch: F without its factor N (the old uncertainty that did not shrink with data), the
# noise variance on the wrong side, a prior precision divided by N.
@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_predictive_distribution_is_the_exact_one(noise):
    known = regression(noise=noise)
    model, fisher = dense(known)
    new = np.random.default_rng(1).standard_normal((7, 3)) * 3
    found = fs.uncertainty(
        model, fisher, real(new), prior_precision=known.delta, noise_variance=noise
    )
    design = np.column_stack([new, np.ones(7)])
    variance = np.einsum("ni,ij,nj->n", design, known.covariance, design)
    np.testing.assert_allclose(found.predictions["mean"], design @ known.mean, rtol=1e-10)
    np.testing.assert_allclose(found.predictions["sd"] ** 2, variance, rtol=1e-9)
    np.testing.assert_allclose(found.predictions["predictive_sd"] ** 2, variance + noise, rtol=1e-9)
    assert found.outcome == "no_labels"


# Would catch: log det P of the mean instead of the sum (p log N), the prior's log det left out,
# the scatter without its half.
@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_log_evidence_is_the_exact_one(noise):
    known = regression(noise=noise)
    model, fisher = dense(known)
    found = fs.uncertainty(
        model, fisher, real(known.x), prior_precision=known.delta, noise_variance=noise
    )
    evidence = known.log_likelihood() + found.log_occam_factor
    assert evidence == pytest.approx(known.log_evidence(), abs=1e-9)


# Would catch: a diagonal that is inverted before it is read off, a square root too many, N.
def test_standard_errors_are_the_exact_ones():
    known = regression()
    model, fisher = dense(known)
    found = fs.uncertainty(
        model,
        fisher,
        real(known.x),
        kind="cramer_rao",
        prior_precision=0,
        noise_variance=known.noise,
    )
    exact = np.sqrt(np.diag(dataclasses.replace(known, delta=0.0).covariance))
    errors = found.standard_errors
    mine = np.append(errors["weight"].numpy().reshape(-1), errors["bias"].numpy())
    np.testing.assert_allclose(mine, exact, rtol=1e-9)
    assert list(found.parameters()["tensor"]) == ["weight", "bias"]


# Would catch: a maximum of something else than the evidence (its precision per unit, a scatter
# around another mean).
def test_marginal_likelihood_finds_the_maximum_of_the_exact_evidence():
    start = regression()
    model, fisher = dense(start)
    # At fixed weights: evidence as a function of δ, with the weights where they are.
    found = fs.uncertainty(model, fisher, real(start.x), noise_variance=start.noise)
    a, w = start.design, start.mean
    grid = found.prior_precision * np.exp(np.linspace(-0.2, 0.2, 401))
    values = [
        -0.5 * np.linalg.slogdet(a.T @ a / start.noise + d * np.eye(4))[1]
        + 2 * np.log(d)
        - 0.5 * d * w @ w
        for d in grid
    ]
    assert abs(int(np.argmax(values)) - 200) <= 1
    # MacKay's fixed point: δ |w|² is the number of effective parameters.
    assert found.prior_precision * (w @ w) == pytest.approx(found.effective_parameters, rel=1e-5)
    assert found.prior_outcome == "marglik"


# Would catch: a prior that is centred at zero whatever was asked for.
def test_prior_mean():
    known = regression()
    model, fisher = dense(known)
    mean = {"weight": torch.full((1, 3), 0.5), "bias": torch.tensor([0.1])}
    away = np.append(known.mean[:3] - 0.5, known.mean[3] - 0.1)
    assert prior_distance(model, fisher, mean) == pytest.approx(away @ away, rel=1e-6)
    with pytest.raises(ParameterError, match="'wight' is not covered"):
        prior_distance(model, fisher, {"wight": torch.zeros(1, 3)})
    own = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(ParameterError, match="at the prior's mean"):
        fs.uncertainty(model, fisher, real(known.x), prior_mean=own)


# Would catch: an uncertainty that does not shrink with data (the missing factor N), and one that
# depends on what counts as a unit.
def test_more_data_mean_less_uncertainty():
    known = regression(n=20)
    model, fisher = dense(known)
    twice = fs.uncertainty(model, fisher, real(known.x), prior_precision=1e-9, observations=40)
    once = fs.uncertainty(model, fisher, real(known.x), prior_precision=1e-9)
    ratio = twice.predictions["sd"] / once.predictions["sd"]
    np.testing.assert_allclose(ratio, 0.5**0.5, rtol=1e-6)
    by_token = dense(known, unit="token")[1]
    other = fs.uncertainty(model, by_token, real(known.x), prior_precision=1e-9)
    np.testing.assert_allclose(other.predictions["sd"], once.predictions["sd"], rtol=1e-9)


# Would catch: a temperature that multiplies the prior as well, or the wrong way round.
def test_temperature_divides_the_data_and_not_the_prior():
    known = regression()
    model, fisher = dense(known)
    posterior = Posterior(fisher, fisher.n_units, 0.7, 4.0)
    a = known.design
    expected = np.linalg.inv(a.T @ a / 4 + 0.7 * np.eye(4))
    variances = posterior.variances()
    mine = np.append(variances["weight"].numpy().reshape(-1), variances["bias"].numpy())
    np.testing.assert_allclose(mine, np.diag(expected), rtol=1e-9)
    logdet = -np.linalg.slogdet(expected)[1]
    assert posterior.logdet() == pytest.approx(logdet, rel=1e-10)


# Would catch: samples of the precision instead of the covariance, or not scaled by 1/√N.
def test_sampled_weights_have_the_posteriors_covariance():
    known = regression()
    _, fisher = dense(known)
    posterior = Posterior(fisher, fisher.n_units, known.delta, known.noise)
    drawn = [posterior.sample(seed) for seed in range(4000)]
    flat = np.array([np.append(d["weight"].numpy(), d["bias"].numpy()) for d in drawn])
    scale = np.sqrt(np.outer(*2 * [np.diag(known.covariance)]))
    assert (abs(np.cov(flat.T) - known.covariance) / scale).max() < 0.1  # 4.5 standard errors
