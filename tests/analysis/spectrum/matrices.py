"""Symmetric matrices with a prescribed spectrum, in a random basis."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.sparse.linalg import LinearOperator

N = 160
SPECTRA = {
    "geometric": 0.8 ** np.arange(N),
    "flat": np.linspace(1.5, 0.5, N),
    "clusters": np.r_[np.linspace(10.1, 9.9, 20), np.linspace(1.1, 0.9, N - 20)],
    "low_rank": np.r_[np.arange(5.0, 0.0, -1.0), np.zeros(N - 5)],
}
NAMES = tuple(SPECTRA)


@cache
def basis(n: int = N) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(2024).standard_normal((n, n)))[0]


@cache
def matrix(name: str) -> np.ndarray:
    found = symmetric(SPECTRA[name])
    found.flags.writeable = False
    return found


def symmetric(spectrum: np.ndarray) -> np.ndarray:
    q = basis(len(spectrum))
    a = (q * spectrum) @ q.T
    return (a + a.T) / 2


class Watched(LinearOperator):
    """A matrix that remembers the widths of its products."""

    def __init__(self, a: np.ndarray) -> None:
        super().__init__(a.dtype, a.shape)
        self.a = a
        self.widths: list[int] = []

    def _matmat(self, X):
        self.widths.append(X.shape[1])
        return self.a @ X
