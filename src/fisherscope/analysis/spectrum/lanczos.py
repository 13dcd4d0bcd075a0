"""Lanczos tridiagonalisation with full reorthogonalisation, several starts in lockstep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fisherscope.analysis.spectrum.operand import Operand

_CLOSED = 10 * np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """``A Qᵀ = Qᵀ T + r e_kᵀ`` from one start.

    Attributes:
        basis: Q [k, n], orthonormal rows; the first is the start over its norm.
        diagonal: Of T [k].
        offdiagonal: Of T [k - 1], non-negative.
        residual: r [n], orthogonal to the basis; its norm is what T leaves out.
        closed: Whether the basis spans an invariant subspace, so that the eigenvalues of T
            are eigenvalues of A.
    """

    basis: np.ndarray
    diagonal: np.ndarray
    offdiagonal: np.ndarray
    residual: np.ndarray
    closed: bool

    def quadrature(self, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights of the Gauss rule for ``vᵀ f(A) v / vᵀv`` with v the start.

        Args:
            steps: Use the first so many rows of T. Default: ``None``, all.

        Returns:
            Nodes, ascending, and weights, which add up to one. The rule is exact for
            polynomials of degree ``2 steps - 1``, and for any f when ``closed``.
        """
        k = len(self.diagonal) if steps is None else min(steps, len(self.diagonal))
        off = self.offdiagonal[: k - 1]
        t = np.diag(self.diagonal[:k]) + np.diag(off, 1) + np.diag(off, -1)
        nodes, vectors = np.linalg.eigh(t)
        return nodes, vectors[0] ** 2


def tridiagonalise(operand: Operand, starts: np.ndarray, steps: int) -> list[Tridiagonal]:
    """Run Lanczos from each start; one product per step serves all of them.

    Without reorthogonalisation the basis decays and eigenvalues come back as copies of
    themselves; here each new vector is orthogonalised twice against all before it, at the
    price of keeping them: ``8 · n · steps`` bytes per start.

    Args:
        operand: A symmetric operand.
        starts: [n, p], none of them zero.
        steps: Most steps; n at most are taken, and fewer where the subspace closes.

    Returns:
        One decomposition per start (Lanczos, 1950; reorthogonalisation: Paige, 1972, and
        "twice is enough", Parlett, 1980).
    """
    n, p = starts.shape
    steps = min(steps, n)
    bases = np.zeros((p, steps, n))
    diagonals, offs = np.zeros((p, steps)), np.zeros((p, steps))
    residuals = np.zeros((p, n))
    sizes, scales = np.full(p, steps), np.zeros(p)
    closed = np.zeros(p, dtype=bool)
    bases[:, 0] = (starts / np.linalg.norm(starts, axis=0)).T
    for j in range(steps):
        live = np.flatnonzero(~closed)
        if not len(live):
            break
        products = operand.matmat(bases[live, j].T).T
        for i, w in zip(live, np.array(products, order="C"), strict=True):
            basis = bases[i, : j + 1]
            scales[i] = max(scales[i], np.linalg.norm(w))
            along = basis @ w
            w -= along @ basis
            again = basis @ w
            w -= again @ basis
            diagonals[i, j] = along[j] + again[j]
            offs[i, j] = size = np.linalg.norm(w)
            residuals[i] = w
            # What is left of an invariant subspace is the rounding error of the product. Going on
            # with it is harmless, as its nodes have no weight, but for exact zeros.
            if size <= _CLOSED * np.sqrt(n) * scales[i] or j + 1 == n:
                closed[i], sizes[i] = True, j + 1
            elif j + 1 < steps:
                bases[i, j + 1] = w / size
    return [
        Tridiagonal(
            basis=bases[i, :k],
            diagonal=diagonals[i, :k],
            offdiagonal=offs[i, : k - 1],
            residual=residuals[i],
            closed=bool(closed[i]),
        )
        for i, k in enumerate(sizes)
    ]
