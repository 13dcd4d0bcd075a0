"""The largest eigenvalues and their eigenvectors."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from fisherscope.analysis.spectrum.lanczos import tridiagonalise
from fisherscope.analysis.spectrum.operand import Operand, require_whole, symmetric_operand
from fisherscope.analysis.spectrum.probes import Stream, gaussian
from fisherscope.defaults import DEFAULTS
from fisherscope.errors import ParameterError
from fisherscope.results import Result

Outcome = Literal["exact", "converged", "not_converged"]
_SIZING = 10


@dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """The algebraically largest eigenvalues, the largest first.

    Attributes:
        eigenvalues: [pairs]; fewer than asked for where only these converged.
        eigenvectors: [n, pairs], orthonormal columns; the entry of largest magnitude of each
            is positive.
        residuals: ``‖Av − λv‖`` [pairs], from products made for it: within this distance of
            each value there is an eigenvalue.
        products: Products with the operator that it took, without those that checked its
            symmetry.
        n: Size of the operator.
        outcome: ``"exact"`` (dense decomposition), ``"converged"`` (all pairs, with residuals
            up to the tolerance) or ``"not_converged"``.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    residuals: np.ndarray
    products: int
    n: int
    outcome: Outcome

    def to_frame(self) -> pd.DataFrame:
        """One row per pair.

        Returns:
            Columns ``rank`` (from 1), ``eigenvalue`` and ``residual``.
        """
        return pd.DataFrame({
            "rank": np.arange(1, len(self.eigenvalues) + 1),
            "eigenvalue": self.eigenvalues,
            "residual": self.residuals,
        })


def top_eigenpairs(
    operator: Any,
    k: int = 6,
    *,
    tolerance: float = 1e-6,
    max_restarts: int = 300,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues with their eigenvectors.

    Implicitly restarted Lanczos (Lehoucq, Sorensen and Yang, 1998) of scipy's ``eigsh``, one
    vector per product; keeps about ``n · max(2k, 20)`` numbers.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        k: Number of pairs, from 1 to n; from n - 1 on, and for an operator that is no larger
            than the Lanczos basis, by n products and a dense decomposition. Default: 6.
        tolerance: Bound of the residuals, relative to the largest magnitude of an eigenvalue.
            Not below the rounding of the operator's own products. Default: 1e-6.
        max_restarts: Give up after so many restarts, each of about ``max(k, 20 - k)``
            products. Default: 300.
        seed: Keys the start. Default: 0.
        block_size: Vectors per product where there are several. Default: ``None``, 16.

    Returns:
        The pairs with their residuals; after too many restarts those that converged. An
        operator that is not symmetric raises ``ParameterError``.

    Raises:
        ParameterError: If k is out of range or the tolerance not positive.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ParameterError(f"tolerance={tolerance!r} must be a positive number")
    require_whole("max_restarts", max_restarts, 1)
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    n = operand.n
    require_whole("k", k, 1, n)
    width = max(2 * k + 1, 20)
    if k >= n - 1 or n <= width:
        values, vectors = np.linalg.eigh(operand.dense())
        return _result(operand, values[-k:], vectors[:, -k:], "exact")
    start = gaussian(seed, Stream.START, [0], n)
    sizing = tridiagonalise(operand, start, _SIZING)[0]
    size = float(np.abs(sizing.quadrature()[0]).max())
    if not size:
        return _result(operand, np.zeros(k), np.eye(n, k), "converged")
    # ARPACK's tolerance is relative to each eigenvalue, and absolute for tiny ones: of an
    # operator in small units it would accept anything, and one near zero it would never accept
    # and pass over. In units of ``bound`` and shifted by two, all lie between one and three.
    bound = size + float(np.linalg.norm(sizing.residual))
    found: Outcome = "converged"
    try:
        values, vectors = eigsh(
            _Shifted(operand, bound),
            k,
            which="LA",
            v0=start[:, 0],
            ncv=width,
            maxiter=max_restarts,
            **_options(tolerance * size / (3 * bound), seed),
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        found = "not_converged"
    result = _result(operand, bound * (values - 2), vectors, found)
    # ARPACK bounds residuals by its own recurrence, which does not see noise in the products.
    size = max(size, np.abs(result.eigenvalues).max(initial=0.0))
    if result.residuals.max(initial=0.0) > tolerance * size:
        return replace(result, outcome="not_converged")
    return result


class _Shifted(LinearOperator):
    """``A / bound + 2I``."""

    def __init__(self, operand: Operand, bound: float) -> None:
        super().__init__(np.dtype(np.float64), operand.shape)
        self._operand, self._bound = operand, bound

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._operand.matmat(X) / self._bound + 2 * X


def _options(tolerance: float, seed: int) -> dict[str, Any]:
    # Where the basis closes early ARPACK goes on from a random vector: newer versions of scipy
    # draw it anew in each call unless told otherwise, older ones have a fixed stream.
    options: dict[str, Any] = {"tol": tolerance}
    if "rng" in inspect.signature(eigsh).parameters:
        options["rng"] = np.random.default_rng(seed)
    return options


def _result(
    operand: Operand, values: np.ndarray, vectors: np.ndarray, outcome: Outcome
) -> Eigenpairs:
    order = np.argsort(-values, kind="stable")
    values, vectors = values[order], vectors[:, order]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    residuals = np.linalg.norm(operand.matmat(vectors) - vectors * values, axis=0)
    return Eigenpairs(values, vectors, residuals, operand.products, operand.n, outcome)
