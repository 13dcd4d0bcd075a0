"""The trace of an operator that is only known by its products."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.linalg import qr

from fisherscope.analysis.spectrum.deflation import deflate
from fisherscope.analysis.spectrum.operand import Operand, require_whole, symmetric_operand
from fisherscope.analysis.spectrum.probes import Stream, gaussian, rademacher
from fisherscope.analysis.spectrum.spectral_estimate import SpectralEstimate, exact, sampled
from fisherscope.defaults import DEFAULTS
from fisherscope.errors import ParameterError

TraceMethod = Literal["hutchinson", "hutch++", "xtrace"]
PRODUCTS = 64
_LEAST = {"hutchinson": 2, "hutch++": 4, "xtrace": 4}


def trace(
    operator: Any,
    *,
    method: TraceMethod = "xtrace",
    products: int = PRODUCTS,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> SpectralEstimate:
    r"""Unbiased estimate of the trace, with its standard error.

    - ``"hutchinson"``: the mean of ``zᵀAz`` over random signs z (Girard, 1989; Hutchinson,
      1990). Variance ``2(‖A‖_F² − Σ A_ii²)/products``; keeps ``n · block_size`` numbers.
    - ``"hutch++"``: a third of the products finds a subspace Q, a third takes its trace
      exactly, a third is Hutchinson on what is left (Meyer, Musco, Musco and Woodruff, 2021).
    - ``"xtrace"``: half of the products finds a subspace, half takes its trace, and each test
      vector in turn is left out of the subspace to be Hutchinson's vector for the rest
      (Epperly, Tropp and Webber, 2024). Best wherever eigenvalues decay; on a flat spectrum
      Hutchinson's method has half of its variance.

    The latter two keep about ``n · products`` numbers.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        method: Estimator. Default: ``"xtrace"``.
        products: Budget of products; at least 4 (2 for ``"hutchinson"``). From n on, all
            columns of the identity are multiplied and the trace is exact. Default: 64.
        seed: Keys the random vectors. Default: 0.
        block_size: Vectors per product; the value does not depend on it beyond rounding.
            Default: ``None``, 16.

    Returns:
        The estimate. An operator that is not symmetric raises ``ParameterError``, one whose
        products are not finite ``NonFiniteError``.

    Raises:
        ParameterError: If the method is unknown or an argument out of range.
    """
    if method not in _LEAST:
        raise ParameterError(f"method={method!r} is unknown; use one of {', '.join(_LEAST)}")
    require_whole("products", products, _LEAST[method])
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    n = operand.n
    if products >= n:
        return exact("trace", _by_columns(operand), products=operand.products, n=n)
    samples = _SAMPLES[method](operand, products, seed)
    return sampled("trace", method, samples, products=operand.products, n=n)


def _by_columns(operand: Operand) -> float:
    total = 0.0
    for start in range(0, operand.n, operand.block_size):
        rows = np.arange(start, min(start + operand.block_size, operand.n))
        columns = np.zeros((operand.n, len(rows)))
        columns[rows, rows - start] = 1
        total += operand.matmat(columns)[rows, rows - start].sum()
    return float(total)


def _hutchinson(operand: Operand, products: int, seed: int) -> np.ndarray:
    samples = []
    for start in range(0, products, operand.block_size):
        indices = range(start, min(start + operand.block_size, products))
        z = rademacher(seed, Stream.PROBE, indices, operand.n)
        samples.append((z * operand.matmat(z)).sum(0))
    return np.concatenate(samples)


def _hutchpp(operand: Operand, products: int, seed: int) -> np.ndarray:
    deflated = deflate(operand, products, seed)
    return deflated.trace + (deflated.vectors * deflated.images).sum(0)


# XTrace. Y = AΩ = QR, with m test vectors ω_i. Let Q_i span Y without column i. The unit vector
# s_i orthogonal to all columns of R but the i-th (column i of R⁻ᵀ over its norm) tells the two
# apart: Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ. As Q_i does not depend on ω_i,
#     t_i = tr(Q_iᵀ A Q_i) + c_i r_iᵀ A r_i,   r_i = (I − Q_i Q_iᵀ) ω_i = ω_i − Q x_i,
#     x_i = w_i − s_i s_iᵀ w_i,   W = QᵀΩ,
# is unbiased with c_i = 1. For Gaussian ω_i the direction of r_i is uniform in the n − m + 1
# dimensions that Q_i leaves, and independent of its length; c_i = (n − m + 1)/‖r_i‖² replaces
# the length by its mean: still unbiased, less variance. With H = QᵀAQ and QᵀAΩ = R (symmetry):
#     tr(Q_iᵀAQ_i) = tr H − s_iᵀ H s_i,   ‖r_i‖² = ‖ω_i‖² − ‖x_i‖²,
#     r_iᵀ A r_i = w_iᵀ R_i − 2 x_iᵀ R_i + x_iᵀ H x_i.
# The t_i are exchangeable; their spread over √m is the paper's error estimate.
def _xtrace(operand: Operand, products: int, seed: int) -> np.ndarray:
    n, m = operand.n, products // 2
    omega = gaussian(seed, Stream.PROBE, range(m), n)
    q, r = qr(operand.matmat(omega), mode="economic", overwrite_a=True, check_finite=False)
    h = q.T @ operand.matmat(q)
    w = q.T @ omega
    s = _left_out(r)
    x = w - s * (s * w).sum(0)
    captured = np.trace(h) - (s * (h @ s)).sum(0)
    remainder = ((w - 2 * x) * r).sum(0) + (x * (h @ x)).sum(0)
    length = (omega**2).sum(0) - (x**2).sum(0)
    return captured + (n - m + 1) * remainder / length


def _left_out(r: np.ndarray) -> np.ndarray:
    # Normalised columns of R⁻ᵀ = U Σ⁻¹ Vᵀ. Where the operator's rank is below m, R is singular
    # and any null vector of the others will do: a floor under Σ picks one.
    u, size, vt = np.linalg.svd(r)
    floor = max(np.finfo(float).eps * size[0], np.finfo(float).tiny)
    s = (u / np.maximum(size, floor)) @ vt
    return s / np.linalg.norm(s, axis=0)


_SAMPLES = {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace}
