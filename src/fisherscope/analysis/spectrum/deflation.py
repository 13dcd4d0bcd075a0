"""The dominant part of an operator exactly, and random vectors for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import qr

from fisherscope.analysis.spectrum.operand import Operand
from fisherscope.analysis.spectrum.probes import Stream, rademacher


@dataclass(frozen=True, eq=False)
class Deflated:
    """An operator split by a subspace Q that holds most of it.

    Attributes:
        trace: ``tr(QᵀAQ)``.
        square: ``‖AQ‖_F² = tr(QᵀA²Q)``.
        vectors: Random signs with their part in Q taken out, ``P g`` with ``P = I − QQᵀ``,
            [n, number].
        images: ``A`` times these. So ``gᵀPAPg`` and ``‖APg‖²`` are unbiased for what
            ``trace`` and ``square`` lack of ``tr A`` and ``‖A‖_F²``.
    """

    trace: float
    square: float
    vectors: np.ndarray
    images: np.ndarray


def deflate(operand: Operand, products: int, seed: int) -> Deflated:
    """Split an operator by its products with a random sketch.

    Args:
        operand: A symmetric operand.
        products: Budget, at least 4: a third for the sketch, a third for its subspace, the
            rest for random vectors.
        seed: Keys the vectors.

    Returns:
        The parts (Meyer, Musco, Musco and Woodruff, 2021, algorithm 1).
    """
    k = products // 3
    sketch = operand.matmat(rademacher(seed, Stream.SKETCH, range(k), operand.n))
    q = qr(sketch, mode="economic", overwrite_a=True, check_finite=False)[0]
    image = operand.matmat(q)
    rest = rademacher(seed, Stream.PROBE, range(products - 2 * k), operand.n)
    rest -= q @ (q.T @ rest)
    return Deflated(
        trace=float((q * image).sum()),
        square=float((image**2).sum()),
        vectors=rest,
        images=operand.matmat(rest),
    )
