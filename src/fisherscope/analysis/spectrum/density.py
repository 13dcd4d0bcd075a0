"""The density of eigenvalues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fisherscope.analysis.spectrum.operand import symmetric_operand
from fisherscope.analysis.spectrum.quadrature import PROBES, STEPS, quadrature
from fisherscope.defaults import DEFAULTS
from fisherscope.errors import ParameterError
from fisherscope.results import Result

# Spacing of the default grid and its margin, in widths: a trapezoid sum over Gaussians is
# then exact to rounding.
_SPACING = 0.5
_MARGIN = 8.0
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class SpectralDensity(Result):
    """Share of eigenvalues per unit of eigenvalue.

    Attributes:
        grid: Eigenvalues at which the density is evaluated [points], ascending.
        density: Mean over the probes [points]; over the whole axis it integrates to one.
        standard_error: Over the probes [points]; 0 if exact.
        nodes: Gauss nodes of each probe [probes, steps]: all lie between the smallest and the
            largest eigenvalue. The eigenvalues themselves, in one row, if exact.
        weights: Share of eigenvalues that each node stands for [probes, steps]; each row adds
            up to one.
        width: Standard deviation of the Gaussian that replaces each node.
        products: Products with the operator that it took, without those that checked its
            symmetry.
        n: Size of the operator.
        outcome: ``"exact"`` (nodes are the eigenvalues) or ``"estimated"``.
    """

    grid: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    width: float
    products: int
    n: int
    outcome: Literal["exact", "estimated"]

    def to_frame(self) -> pd.DataFrame:
        """The curve.

        Returns:
            Columns ``eigenvalue``, ``density`` and ``standard_error``.
        """
        return pd.DataFrame({
            "eigenvalue": self.grid,
            "density": self.density,
            "standard_error": self.standard_error,
        })

    def cumulative(self, at: float) -> tuple[float, float]:
        """Share of eigenvalues up to a value, without broadening.

        Args:
            at: The value.

        Returns:
            The share and its standard error over the probes. A Gauss rule places a cluster's
            share in few nodes: inside a cluster the share is a step function of the steps.
        """
        shares = (self.weights * (self.nodes <= at)).sum(1)
        return float(shares.mean()), _error(shares)


def spectral_density(
    operator: Any,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = DEFAULTS.seed,
    grid: np.ndarray | None = None,
    width: float | None = None,
    block_size: int | None = None,
) -> SpectralDensity:
    r"""Density of eigenvalues by stochastic Lanczos quadrature.

    .. math:: \phi(t) = \frac1n \sum_i \delta(t - \lambda_i) \approx \frac1P \sum_{p=1}^{P}
              \sum_{j=1}^{k} w_{pj}\, \mathcal N(t; \theta_{pj}, \sigma^2)

    with the Gauss rules of k Lanczos steps, fully reorthogonalised, from P vectors of random
    signs (Ubaru, Chen and Saad, 2017; Lin, Saad and Yang, 2016). Eigenvalues that stand alone
    are found to rounding; inside a continuum k steps resolve about 1/k of its extent, which
    is the default of ``width``.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        probes: Number of random vectors P. Default: 16.
        steps: Lanczos steps k. Default: 64. When ``probes * steps`` reaches n (up to 4096),
            all eigenvalues are computed.
        seed: Keys the random vectors. Default: 0.
        grid: Ascending values at which to evaluate. Default: ``None``, evenly spaced over all
            nodes with a margin, so that the trapezoid rule over it gives one.
        width: Standard deviation σ of the broadening. Default: ``None``, the extent of the
            nodes over ``steps``.
        block_size: Vectors per product; the result does not depend on it beyond rounding.
            Default: ``None``: 16, or fewer where their bases would pass 1 GiB.

    Returns:
        The density with its pointwise standard error, and the nodes and weights. An operator
        that is not symmetric raises ``ParameterError``, one whose products are not finite
        ``NonFiniteError``.

    Raises:
        ParameterError: If the grid is not ascending and finite, the width not positive, or a
            number out of range.
    """
    if width is not None and not (math.isfinite(width) and width > 0):
        raise ParameterError(f"width={width!r} must be a positive number")
    if grid is not None:
        grid = np.array(grid, dtype=np.float64)
        if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
            raise ParameterError("grid must be a vector of finite values")
        if (np.diff(grid) <= 0).any():
            raise ParameterError("grid must be ascending, without repeated values")
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    rules = quadrature(operand, probes=probes, steps=steps, seed=seed)
    low, high = float(rules.nodes.min()), float(rules.nodes.max())
    width = width or _width(low, high, steps)
    if grid is None:
        margin = _MARGIN * width
        points = 1 + math.ceil((high - low + 2 * margin) / (_SPACING * width))
        grid = np.linspace(low - margin, high + margin, points)
    curves = np.stack([
        _broadened(grid, nodes, weights, width)
        for nodes, weights in zip(rules.nodes, rules.weights, strict=True)
    ])
    return SpectralDensity(
        grid=grid,
        density=curves.mean(0),
        standard_error=np.array([_error(samples) for samples in curves.T]),
        nodes=rules.nodes,
        weights=rules.weights,
        width=width,
        products=rules.products,
        n=rules.n,
        outcome="exact" if rules.exact else "estimated",
    )


def _width(low: float, high: float, steps: int) -> float:
    # A multiple of the identity has no extent but rounding; its own size is the next best.
    scale = max(abs(low), abs(high)) or 1.0
    extent = high - low
    return (extent if extent > 1e-9 * scale else scale) / steps


def _broadened(
    grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, width: float
) -> np.ndarray:
    norm = width * math.sqrt(2 * math.pi)
    curve = np.empty(len(grid))
    chunk = max(1, _CHUNK // len(nodes))
    for start in range(0, len(grid), chunk):
        at = grid[start : start + chunk, None]
        curve[start : start + chunk] = np.exp(-(((at - nodes) / width) ** 2) / 2) @ weights
    return curve / norm


def _error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else 0.0
