"""XTrace: a trace from test vectors of which each in turn is left out of the sketch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fisherscope.analysis.spectrum.operand import Operand
from fisherscope.analysis.spectrum.probes import Stream, gaussian

# Left-out pairs are taken among so many test vectors; each costs a small decomposition.
_PAIRED = 32


def xtrace(operand: Operand, m: int, seed: int) -> tuple[np.ndarray, float]:
    r"""Basic estimates of XTrace, and the variance of their mean.

    Let :math:`Y = A\Omega = QR` with m Gaussian columns :math:`\omega_i`, and let
    :math:`Q_i` span Y without column i. With :math:`P_i = I - Q_i Q_i^\top`,

    .. math:: t_i = \operatorname{tr}(Q_i^\top A Q_i)
              + \frac{n - m + 1}{\lVert P_i\omega_i\rVert^2}\,
              \omega_i^\top P_i A P_i\,\omega_i

    is unbiased: :math:`Q_i` does not depend on :math:`\omega_i`, whose direction within the
    n − m + 1 dimensions left over is uniform and independent of its length (so the length can
    be set to its mean, which takes its variance out).

    Args:
        operand: A symmetric operand.
        m: Number of test vectors, at least 2 and less than n; takes 2m products.
        seed: Keys the vectors.

    Returns:
        The estimates t_i [m] and an estimate of the variance of their mean (Epperly, Tropp and
        Webber, 2024). The variance counts their covariance, which the paper's error estimate
        leaves out.
    """
    n = operand.n
    omega = gaussian(seed, Stream.PROBE, range(m), n)
    q, r = np.linalg.qr(operand.matmat(omega))
    h = np.empty((m, m))
    for at in operand.blocks(m):
        h[:, at.start : at.stop] = q.T @ operand.matmat(q[:, at.start : at.stop])
    compressed = _Compressed(n, h, q.T @ omega, r, (omega**2).sum(0))
    samples = compressed.estimates()
    covariance = max(0.0, _covariance(compressed, samples))
    return samples, float(samples.var(ddof=1) / m + covariance)


@dataclass(frozen=True, eq=False)
class _Compressed:
    # All that the estimates need: H = QᵀAQ, W = QᵀΩ, R and ‖ω_i‖².
    n: int
    h: np.ndarray
    w: np.ndarray
    r: np.ndarray
    length: np.ndarray

    def estimates(self) -> np.ndarray:
        # The unit vector s_i orthogonal to all columns of R but the i-th tells Q_i from Q:
        # Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ. With x_i = w_i − s_i s_iᵀw_i, P_i ω_i = ω_i − Q x_i,
        # and with QᵀAω_i = R_i (symmetry):
        #     tr(Q_iᵀ A Q_i) = tr H − s_iᵀ H s_i,     ‖P_i ω_i‖² = ‖ω_i‖² − ‖x_i‖²,
        #     ω_iᵀ P_i A P_i ω_i = w_iᵀ R_i − 2 x_iᵀ R_i + x_iᵀ H x_i.
        h, w, r = self.h, self.w, self.r
        s = _left_out(r)
        x = w - s * (s * w).sum(0)
        captured = np.trace(h) - (s * (h @ s)).sum(0)
        rest = ((w - 2 * x) * r).sum(0) + (x * (h @ x)).sum(0)
        left = self.n - r.shape[1] + 1
        return captured + left * rest / (self.length - (x**2).sum(0))

    def without(self, j: int) -> _Compressed:
        # As if test vector j had not been drawn; costs no product.
        r = np.delete(self.r, j, axis=1)
        u, r = np.linalg.qr(r)
        w = u.T @ np.delete(self.w, j, axis=1)
        return _Compressed(self.n, u.T @ self.h @ u, w, r, np.delete(self.length, j))


def _left_out(r: np.ndarray) -> np.ndarray:
    # Normalised columns of R⁻ᵀ = U Σ⁻¹ Vᵀ. Where the operator's rank is below m, R is singular
    # and any null vector of the others will do: a floor under Σ picks one.
    u, size, vt = np.linalg.svd(r)
    relative = size / size[0] if size[0] > 0 else size
    s = (u / np.maximum(relative, np.finfo(float).eps)) @ vt
    return s / np.linalg.norm(s, axis=0)


# The t_i are exchangeable, not independent: their spread over √m, the usual error estimate, has
# the mean (V − C)/m with V their variance and C the covariance of two, and the variance of their
# mean is (V − C)/m + C. Let t_i^j be t_i without test vector j in its basis, d_ij = t_i − t_i^j.
# Given all vectors but ω_j, t_j has the mean tr A and t_i^j is constant: so t_i^j is
# uncorrelated with t_j, and likewise with t_j^i. Hence C = E[d_ij d_ji].
def _covariance(compressed: _Compressed, samples: np.ndarray) -> float:
    paired = min(len(samples), _PAIRED)
    change = np.zeros((paired, paired))
    for j in range(paired):
        others = np.delete(np.arange(len(samples)), j)
        found = samples[others] - compressed.without(j).estimates()
        inside = others < paired
        change[others[inside], j] = found[inside]
    return float((change * change.T).sum() / (paired * (paired - 1)))
