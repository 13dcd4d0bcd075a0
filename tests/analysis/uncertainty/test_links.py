"""From logits to probabilities against quadrature, closed forms and large samples."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from fisherscope.analysis.uncertainty.links import Running, delta, entropy, probit, sampled


def gaussians(n: int, c: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    roots = scale * rng.standard_normal((n, c, c))
    return 2 * rng.standard_normal((n, c)), roots @ roots.swapaxes(1, 2)


# Would catch: variances of single logits for that of their difference, π/4 for π/8, the
# covariance's sign.
def test_two_classes_are_mackays():
    logits, covariance = gaussians(6, 2)
    found = probit(logits, covariance).probabilities
    apart = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    expected = expit((logits[:, 1] - logits[:, 0]) / np.sqrt(1 + np.pi * apart / 8))
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


# MacKay's formula against the integral that it approximates.
# Would catch: any wrong constant above a few percent.
def test_two_classes_against_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    for mean, variance in [(0.5, 1.0), (2.0, 4.0), (-3.0, 9.0)]:
        exact = (weights @ expit(mean + variance**0.5 * nodes)) / weights.sum()
        covariance = np.diag([0.0, variance])[None]
        found = probit(np.array([[0.0, mean]]), covariance).probabilities[0, 1]
        assert abs(found - exact) < 0.02


# Would catch: the common softmax(f / sqrt(1 + π/8 diag S)), which a constant added to all logits
# changes although the model stays the same (a language model's logits are near -100).
def test_a_constant_added_to_all_logits_changes_nothing():
    logits, covariance = gaussians(5, 4)
    mine = probit(logits, covariance).probabilities
    np.testing.assert_allclose(probit(logits - 100, covariance).probabilities, mine, rtol=1e-9)
    common = logits - 100
    shrunk = np.sqrt(1 + np.pi / 8 * np.diagonal(covariance, axis1=1, axis2=2))
    usual = softmax(common / shrunk, -1) - softmax(logits / shrunk, -1)
    assert abs(usual).max() > 0.3
    # Noise that all logits share is no uncertainty at all.
    shared = np.full((5, 4, 4), 50.0)
    expected = softmax(logits, -1)
    np.testing.assert_allclose(probit(logits, shared).probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(delta(expected, shared), 0, atol=1e-6)
    np.testing.assert_allclose(sampled(logits, shared, 10, 0).probabilities, expected, rtol=1e-6)


# Would catch: a root of the covariance with wrong scale, and logits averaged before the softmax.
def test_samples_meet_an_independent_sampler():
    logits, covariance = gaussians(4, 3)
    found = sampled(logits, covariance, 4000, seed=1)
    rng = np.random.default_rng(9)
    for n in range(4):
        drawn = softmax(rng.multivariate_normal(logits[n], covariance[n], 20000), -1)
        assert abs(found.probabilities[n] - drawn.mean(0)).max() < 4 * 0.5 / np.sqrt(4000)
        np.testing.assert_allclose(found.spread[n], drawn.std(0), rtol=0.08)
        gap = entropy(drawn.mean(0)) - entropy(drawn).mean()
        assert found.information is not None
        assert found.information[n] == pytest.approx(gap, abs=0.03)
    off = abs(probit(logits, covariance).probabilities - found.probabilities)
    assert off.max() < 0.1  # what the approximation costs at standard deviations of 2


# Would catch: noise that depends on the other rows.
def test_a_row_does_not_depend_on_its_batch():
    logits, covariance = gaussians(4, 3)
    whole = sampled(logits, covariance, 50, seed=1).probabilities
    one = sampled(logits[2:3], covariance[2:3], 50, seed=1).probabilities
    np.testing.assert_allclose(one[0], whole[2], rtol=1e-12)


# Would catch: a derivative of the softmax with a sign or a factor wrong.
def test_spread_is_that_of_small_noise():
    logits, covariance = gaussians(3, 4, scale=0.02)
    p = softmax(logits, -1)
    np.testing.assert_allclose(
        delta(p, covariance), sampled(logits, covariance, 3000, 0).spread, rtol=0.06
    )


# Would catch: entropies averaged instead of the entropy of the average: models that each are
# certain of another class would pass as certain.
def test_models_that_disagree_are_not_certain():
    running = Running(1, 4)
    for c in range(4):
        running.add(np.eye(4)[c : c + 1])
    found = running.predictive()
    np.testing.assert_allclose(found.probabilities, 0.25)
    assert found.information is not None
    assert found.information[0] == pytest.approx(np.log(4))
