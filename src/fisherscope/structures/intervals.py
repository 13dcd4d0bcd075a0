"""Bootstrap resamples; standard errors and bootstrap of tensor traces, from a ledger's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fisherscope.errors import ParameterError
from fisherscope.structures.ledger import Ledger

RESAMPLES = 1000


def resamples(
    n: int,
    seed: int | Sequence[int] | np.random.Generator,
    count: int = RESAMPLES,
    *,
    itself: bool = False,
) -> np.ndarray:
    """How often each example of a sample is in each of its bootstrap resamples.

    Args:
        n: Size of the sample.
        seed: Of the draws, or the generator that makes them.
        count: Number of resamples. Default: 1000.
        itself: Whether the sample itself, all ones, stands before its resamples. Default:
            ``False``.

    Returns:
        float64 ``[resamples, n]``; every row sums to ``n``.
    """
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count)
    counts = drawn.astype(np.float64)
    return np.concatenate([np.ones((1, n)), counts]) if itself else counts


def over_examples(ledger: Ledger, weights: np.ndarray, factor: float) -> np.ndarray:
    """Standard error of ``factor * sum(x) / sum(m)`` when examples are random draws.

    With all weights equal this is the usual standard error of a mean; otherwise the delta
    method's for a ratio of two random sums, with the same ``N / (N - 1)`` correction.

    Args:
        ledger: N rows of x.
        weights: float64 ``[N]``, the m of each example.
        factor: Constant multiple.

    Returns:
        float64 ``[P + 1]``: each tensor's, then that of the sum over tensors. NaN with fewer
        than two examples.
    """
    squares, weights = ledger.by_group(ledger.squares), ledger.by_group(weights)
    x = np.concatenate([squares, squares.sum(1, keepdims=True)], axis=1)
    n = len(x)
    if n < 2:
        return np.full(x.shape[1], np.nan)
    residuals = x - np.outer(weights, x.sum(0) / weights.sum())
    return factor * np.sqrt(n / (n - 1) * np.square(residuals).sum(0)) / weights.sum()


def over_draws(ledger: Ledger, draws: int) -> np.ndarray:
    """Standard error of ``sum(x)`` when only the drawn labels are random.

    Args:
        ledger: N rows with their variance over draws.
        draws: Number of draws that each x is the mean of.

    Returns:
        float64 ``[P + 1]``: each tensor's, then that of the sum over tensors.

    Raises:
        ParameterError: If the ledger holds no variance over draws.
    """
    variance, whole = ledger.draw_variance, ledger.draw_variance_total
    if variance is None:
        raise ParameterError(
            "there is no variance over draws in the ledger: estimate with "
            'fisher_type="mc" and draws of at least 2, or use source="examples".'
        )
    if whole is None:
        # One drawn label moves all tensors together, so their variances don't add up;
        # perfect correlation bounds the variance of the sum from above.
        whole = np.square(np.sqrt(variance).sum(1))
    # A number that several examples share moves all of its parts together.
    each = np.column_stack([variance, whole])
    return np.sqrt(np.square(ledger.by_group(np.sqrt(each))).sum(0) / draws)


def bootstrap(
    ledger: Ledger,
    weights: np.ndarray,
    factor: float,
    *,
    statistic: Callable[[np.ndarray], Any],
    n: int,
    seed: int,
) -> np.ndarray:
    """Values of a statistic of ``factor * sum(x) / sum(m)`` over resampled examples.

    Args:
        ledger: N rows of x.
        weights: float64 ``[N]``, the m of each example.
        factor: Constant multiple.
        statistic: Takes float64 ``[P]``, returns a number or an array of fixed shape.
        n: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Array with ``n`` values along its first axis.

    Raises:
        ParameterError: If ``n`` is not positive.
    """
    if n < 1:
        raise ParameterError(f"n={n!r} resamples; use at least 1 (1000 is usual).")
    rng = np.random.default_rng(seed)
    squares, weights = ledger.by_group(ledger.squares), ledger.by_group(weights)
    values = []
    for _ in range(n):
        # How often each row was drawn says all, and spares a copy of the rows.
        (counts,) = resamples(len(squares), rng, 1)
        values.append(statistic(factor * (counts @ squares) / (counts @ weights)))
    return np.asarray(values)
