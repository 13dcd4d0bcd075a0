"""How many directions an operator really has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import xlogy

from fisherscope.analysis.spectrum.deflation import deflate
from fisherscope.analysis.spectrum.functions import METHOD
from fisherscope.analysis.spectrum.operand import require_whole, symmetric_operand
from fisherscope.analysis.spectrum.quadrature import PROBES, STEPS, quadrature
from fisherscope.analysis.spectrum.spectral_estimate import (
    SpectralEstimate,
    Statistic,
    exact,
    sampled,
)
from fisherscope.analysis.spectrum.trace import PRODUCTS
from fisherscope.defaults import DEFAULTS


def effective_rank(
    operator: Any,
    *,
    products: int = PRODUCTS,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> SpectralEstimate:
    r"""The participation ratio of the eigenvalues.

    .. math:: r = \frac{(\operatorname{tr} A)^2}{\lVert A \rVert_F^2}
              = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}

    k equal eigenvalues and zeros otherwise give k. Meant for positive semi-definite operators
    (for others the trace may vanish). Trace and norm come from the same products: the dominant
    subspace exactly, the rest by random vectors as in Hutch++.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        products: Budget of products, at least 4; from n on the value is exact. Default: 64.
        seed: Keys the random vectors. Default: 0.
        block_size: Vectors per product; the value does not depend on it beyond rounding.
            Default: ``None``, 16.

    Returns:
        The jackknife of the ratio with its standard error; NaN and ``"zero_operator"`` for an
        operator without entries. An argument out of range, or an operator that is not
        symmetric, raises ``ParameterError``.
    """
    require_whole("products", products, 4)
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    name, n = "effective rank", operand.n
    if products >= n:
        matrix = operand.dense()
        moments = np.array([np.trace(matrix), (matrix**2).sum()])
        return _exact(name, moments, _participation, operand.products, n)
    split = deflate(operand, products, seed)
    moments = [split.trace + split.forms, split.square + split.squares]
    samples = np.stack(moments, axis=1)
    found = sampled(
        name, "hutch++", samples, statistic=_participation, products=operand.products, n=n
    )
    return _unless_zero(found)


def entropy_rank(
    operator: Any,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> SpectralEstimate:
    r"""The exponential of the entropy of the spectrum (Roy and Vetterli, 2007).

    .. math:: r = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad
              p_i = \frac{|\lambda_i|}{\sum_j |\lambda_j|}

    Never below :func:`effective_rank` of the same positive semi-definite operator, as small
    eigenvalues count for more.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        probes: Number of random vectors. Default: 16.
        steps: Lanczos steps. Default: 64. When ``probes * steps`` reaches n (up to 4096),
            the value is exact.
        seed: Keys the random vectors. Default: 0.
        block_size: Vectors per product; the value does not depend on it beyond rounding.
            Default: ``None``: 16, or fewer where their bases would pass 1 GiB.

    Returns:
        The jackknife over the vectors with its standard error; NaN and ``"zero_operator"`` for
        an operator without entries. An argument out of range, or an operator that is not
        symmetric, raises ``ParameterError``.
    """
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    rules = quadrature(operand, probes=probes, steps=steps, seed=seed)
    sums, coarse_sums = rules.traces(np.abs)
    logs, coarse_logs = rules.traces(lambda x: xlogy(np.abs(x), np.abs(x)))
    name, samples = "entropy rank", np.stack([sums, logs], axis=1)
    if rules.exact:
        return _exact(name, samples[0], _entropy, rules.products, rules.n)
    coarse = np.stack([coarse_sums, coarse_logs], axis=1)
    found = sampled(
        name,
        METHOD,
        samples,
        coarse=coarse,
        statistic=_entropy,
        products=rules.products,
        n=rules.n,
    )
    return _unless_zero(found)


def _participation(moments: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return moments[..., 0] ** 2 / moments[..., 1]


def _entropy(moments: np.ndarray) -> np.ndarray:
    # With t = Σ|λ|: −Σ p log p = log t − Σ|λ| log|λ| / t.
    total = moments[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.exp(np.log(total) - moments[..., 1] / total)


def _exact(
    name: str, moments: np.ndarray, statistic: Statistic, products: int, n: int
) -> SpectralEstimate:
    found = exact(name, float(statistic(moments)), products=products, n=n)
    return _unless_zero(found)


def _unless_zero(found: SpectralEstimate) -> SpectralEstimate:
    if math.isfinite(found.value):
        return found
    return replace(
        found, value=math.nan, standard_error=math.nan, truncation=0.0, outcome="zero_operator"
    )
