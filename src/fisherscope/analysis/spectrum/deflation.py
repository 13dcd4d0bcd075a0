"""The dominant part of an operator exactly, and random vectors for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fisherscope.analysis.spectrum.operand import Operand
from fisherscope.analysis.spectrum.probes import Stream, rademacher


@dataclass(frozen=True, eq=False)
class Deflated:
    """Trace and squared norm of an operator, split by a subspace Q that holds most of it.

    With ``P = I − QQᵀ``, ``tr A = tr(QᵀAQ) + tr(PAP)`` and
    ``‖A‖_F² = ‖AQ‖_F² + ‖AP‖_F²``.

    Attributes:
        trace: ``tr(QᵀAQ)``.
        square: ``‖AQ‖_F²``.
        forms: ``gᵀPAPg`` of random signs g, each unbiased for ``tr(PAP)``.
        squares: ``‖APg‖²`` of the same, each unbiased for ``‖AP‖_F²``.
    """

    trace: float
    square: float
    forms: np.ndarray
    squares: np.ndarray


def deflate(operand: Operand, products: int, seed: int) -> Deflated:
    """Split an operator by its products with a random sketch; keeps ``n · products / 3``.

    Args:
        operand: A symmetric operand.
        products: Budget, at least 4: a third for the sketch, a third for its subspace, the
            rest for random vectors.
        seed: Keys the vectors.

    Returns:
        The parts (Meyer, Musco, Musco and Woodruff, 2021, algorithm 1).
    """
    k, n = products // 3, operand.n
    sketch = np.empty((n, k))
    for at in operand.blocks(k):
        signs = rademacher(seed, Stream.SKETCH, at, n)
        sketch[:, at.start : at.stop] = operand.matmat(signs)
    q = np.linalg.qr(sketch)[0]
    trace = square = 0.0
    for at in operand.blocks(k):
        part = q[:, at.start : at.stop]
        image = operand.matmat(part)
        trace += float((part * image).sum())
        square += float((image**2).sum())
    forms, squares = [], []
    for at in operand.blocks(products - 2 * k):
        rest = rademacher(seed, Stream.PROBE, at, n)
        rest -= q @ (q.T @ rest)
        image = operand.matmat(rest)
        forms.append((rest * image).sum(0))
        squares.append((image**2).sum(0))
    return Deflated(trace, square, np.concatenate(forms), np.concatenate(squares))
