"""How alike two block-diagonal matrices are, as matrices, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fisherscope.analysis.agreement import Metric
from fisherscope.errors import IdentityError
from fisherscope.structures import BlockwiseFisher


def matrix_agreement(
    a: BlockwiseFisher, b: BlockwiseFisher, *, ignore: Sequence[str]
) -> tuple[dict[Metric, float], pd.DataFrame]:
    r"""Cosine and Bhattacharyya overlap of two matrices, in all and per block.

    The cosine is :math:`\langle A, B \rangle / (\|A\| \|B\|)` with Frobenius products, the
    overlap :math:`\mathrm{tr} (A^{1/2} B A^{1/2})^{1/2} / \sqrt{\mathrm{tr} A\, \mathrm{tr} B}`.
    Both numerators are sums over blocks; of Kronecker products they are products over factors.

    Args:
        a: A Fisher of blocks.
        b: A Fisher of the same blocks.
        ignore: Fields of the identities that may differ.

    Returns:
        Metric to value, and a table with one row per block: ``block``, ``n_parameters``, the
        metrics of the block alone, and its share of both traces (``share_a``, ``share_b``).
        Without the overlap where two EKFACs have different eigenvectors. :class:`IdentityError`
        if the Fishers don't have the same blocks.
    """
    b = a.alike(b, "compared", ignore=ignore)
    pairs = list(zip(a.blocks, b.blocks, strict=True))
    inner, aa, bb, trace_a, trace_b = np.array([
        (
            x.inner(y),
            x.inner(x),
            y.inner(y),
            float(x.diagonal().double().sum()),
            float(y.diagonal().double().sum()),
        )
        for x, y in pairs
    ]).T
    numbers: dict[Metric, tuple[np.ndarray, np.ndarray, np.ndarray]] = {"cosine": (inner, aa, bb)}
    try:
        fidelity = np.array([x.fidelity(y) for x, y in pairs])
    except IdentityError:
        # Eigenvectors of two EKFACs differ: the overlap has no formula, so no row.
        pass
    else:
        numbers["bhattacharyya"] = fidelity, trace_a, trace_b
    values: dict[Metric, float] = {
        metric: _over(x.sum(), math.sqrt(y.sum() * z.sum()))
        for metric, (x, y, z) in numbers.items()
    }
    frame = pd.DataFrame({
        "block": [str(x.layout) for x, _ in pairs],
        "n_parameters": [math.prod(x.view.shape) for x, _ in pairs],
        **{m: list(map(_over, x, np.sqrt(y * z))) for m, (x, y, z) in numbers.items()},
        "share_a": [_over(t, trace_a.sum()) for t in trace_a],
        "share_b": [_over(t, trace_b.sum()) for t in trace_b],
    })
    return values, frame


def _over(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator > 0 else math.nan
