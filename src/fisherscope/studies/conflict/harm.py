"""Which examples of one task hurt which of another: permutation tests, false-discovery control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from fisherscope.studies.conflict.rows import ALL, Grams

FEWEST = 5
# Rows of the null distribution made at a time.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class HarmTest:
    """A test of many examples, or of many pairs.

    Attributes:
        statistic: The standardised harm.
        p: p-values, of the statistic's shape.
        q: Benjamini–Hochberg q-values (1995), of the statistic's shape.
        least: The smallest p-value that the test can give.
    """

    statistic: np.ndarray
    p: np.ndarray
    q: np.ndarray
    least: float


def harms(grams: Grams, metric: str, on: str, by: str) -> np.ndarray:
    r"""How much a step on each example of one task raises the loss of each example of another.

    A step of rate :math:`\eta` against the gradient of b changes the loss of a by
    :math:`-\eta \langle g_a, g_b \rangle` to first order, with gradients per token of each.

    Args:
        grams: Inner products.
        metric: ``"plain"``, or ``"natural"`` for a step of the natural gradient.
        on: Task that is hurt.
        by: Task that steps.

    Returns:
        float64 [examples of on, examples of by], per unit of the rate; positive is harm.
    """
    products = grams.pair(metric, ALL, on, by)
    return -products / np.outer(grams.tokens[grams.slices[on]], grams.tokens[grams.slices[by]])


def by_example(harm: np.ndarray, *, permutations: int, seed: int) -> HarmTest:
    r"""Which columns harm more than the others, whatever the row.

    Null hypothesis: to every a all examples of B are alike but for the size of their gradients,
    that is, in each row the harms :math:`z_{ab} = h_{ab} / s_b`, with :math:`s_b` the standard
    deviation of column b, are exchangeable. So they are permuted within each row, rows
    independently. Without the division an example of B with a large gradient, which scatters
    more without harming more, would pass for harmful. The statistic of a column is :math:`t =
    \bar d / (s_d / \sqrt{n})` over the rows of :math:`d_{ab} = z_{ab} - \bar z_a`, studentised
    as Chung and Romano (2013) advise. All columns have one null distribution, so their permuted
    values are pooled.

    Args:
        harm: [examples of A, examples of B].
        permutations: How many times the whole table is permuted.
        seed: Of the permutations.

    Returns:
        A statistic, p and q for each example of B, one-sided: is it more harmful?
    """
    rng = np.random.default_rng(seed)
    spread = harm.std(0, ddof=1)
    harm = np.divide(harm, spread, out=np.zeros_like(harm), where=spread > 0)
    observed = _studentised(harm)
    null = []
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        tables = rng.permuted(np.broadcast_to(harm, (count, *harm.shape)), axis=2)
        null.append(_studentised(tables).ravel())
    return _against(observed, np.concatenate(null))


def by_pair(harm: np.ndarray, within: np.ndarray) -> HarmTest:
    r"""Which pairs (a, b) harm more than two examples of A harm each other.

    Null hypothesis: b might as well be an example of A. Then its harm to a is exchangeable with
    the harms of other examples of A to a. Each harm is standardised by the mean and the standard
    deviation of the harms to the same a by examples of A, of which it is not one itself, and
    ranked among all such pairs within A.

    Args:
        harm: [examples of A, examples of B].
        within: [examples of A, examples of A], with NaN for pairs of the same data.

    Returns:
        A statistic, p and q for each pair, one-sided.
    """
    known = np.isfinite(within)
    filled = np.where(known, within, 0.0)
    n, total, squares = known.sum(1), filled.sum(1), (filled**2).sum(1)
    observed = _standardised(harm, n[:, None], total[:, None], squares[:, None])
    # Leaving out the pair itself, as the other task's pairs are not among the reference either.
    null = _standardised(
        filled, n[:, None] - 1, total[:, None] - filled, squares[:, None] - filled**2
    )
    return _against(observed, null[known])


def _studentised(tables: np.ndarray) -> np.ndarray:
    centred = tables - tables.mean(-1, keepdims=True)
    spread = centred.std(-2, ddof=1) / np.sqrt(tables.shape[-2])
    mean = centred.mean(-2)
    return np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0)


def _standardised(x: np.ndarray, n: np.ndarray, total: np.ndarray, squares: np.ndarray):
    mean = total / n
    variance = np.maximum(squares - n * mean**2, 0) / (n - 1)
    # A new value is off by its own spread and by that of the mean that it is compared with.
    spread = np.sqrt(variance * (1 + 1 / n))
    return np.divide(x - mean, spread, out=np.zeros_like(x), where=spread > 0)


def _against(observed: np.ndarray, null: np.ndarray) -> HarmTest:
    ranked = np.sort(null)
    above = len(ranked) - np.searchsorted(ranked, observed.ravel(), side="left")
    p = (1 + above) / (1 + len(ranked))
    q = false_discovery_control(p)
    return HarmTest(
        observed, p.reshape(observed.shape), q.reshape(observed.shape), 1 / (1 + len(ranked))
    )


def tables(
    grams: Grams, *, permutations: int, level: float, most_pairs: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Both tests for every ordered pair of tasks and every metric.

    Args:
        grams: Inner products.
        permutations: Of the test of examples.
        level: Largest q-value that counts as found.
        most_pairs: How many pairs to list, the most harmful first.
        seed: Of the permutations.

    Returns:
        Examples, pairs, and outcomes of the tests.
    """
    examples, pairs, outcomes = [], [], []
    for metric in grams.products:
        for on in grams.slices:
            for by in grams.slices:
                if on == by:
                    continue
                key = {"on": on, "by": by, "metric": metric}
                if min(len(grams.ids[on]), len(grams.ids[by])) < FEWEST:
                    outcomes += [{**key, "level": what, **_TOO_FEW} for what in ("example", "pair")]
                    continue
                harm = harms(grams, metric, on, by)
                within = harms(grams, metric, on, on)
                own = grams.slices[on]
                within[grams.distinct[own, own] == 0] = np.nan
                one = by_example(harm, permutations=permutations, seed=seed)
                two = by_pair(harm, within)
                examples.append(_examples(grams, key, harm, one))
                pairs.append(_pairs(grams, key, harm, two, most_pairs))
                outcomes += [
                    {**key, "level": what, **_outcome(test, harmful, level)}
                    for what, test, harmful in (
                        ("example", one, harm.mean(0) > 0),
                        ("pair", two, harm > 0),
                    )
                ]
    return _joined(examples, _EXAMPLES), _joined(pairs, _PAIRS), pd.DataFrame(outcomes)


_TOO_FEW = {
    "n_tests": 0,
    "n_found": 0,
    "least_p": np.nan,
    "least_q": np.nan,
    "outcome": "too_few_examples",
}
_EXAMPLES = ("on", "by", "metric", "example", "tokens", "harm", "statistic", "p", "q")
_PAIRS = ("on", "by", "metric", "example_on", "example_by", "harm", "sketch_sd", "p", "q")


def _outcome(test: HarmTest, harmful: np.ndarray, level: float) -> dict[str, object]:
    # Less helpful than the others is significant too, but is no harm.
    found = int(((test.q <= level) & harmful).sum())
    return {
        "n_tests": test.p.size,
        "n_found": found,
        "least_p": test.least,
        "least_q": float(test.q.min()),
        "outcome": "found" if found else "none_significant",
    }


def _examples(grams: Grams, key: dict, harm: np.ndarray, test: HarmTest) -> pd.DataFrame:
    by = key["by"]
    frame = pd.DataFrame({
        **key,
        "example": grams.ids[by],
        "tokens": grams.tokens[grams.slices[by]].astype(int),
        "harm": harm.mean(0),
        "statistic": test.statistic,
        "p": test.p,
        "q": test.q,
    })
    return frame.sort_values(["p", "statistic"], ascending=[True, False], kind="stable")


def _pairs(grams: Grams, key: dict, harm: np.ndarray, test: HarmTest, most: int) -> pd.DataFrame:
    on, by = key["on"], key["by"]
    order = np.lexsort((-test.statistic.ravel(), test.p.ravel()))[:most]
    rows, columns = np.unravel_index(order, harm.shape)
    own, other = grams.slices[on], grams.slices[by]
    variance = grams.pair_variance[key["metric"]][own, other]
    scale = np.outer(grams.tokens[own], grams.tokens[other])
    return pd.DataFrame({
        **key,
        "example_on": [grams.ids[on][i] for i in rows],
        "example_by": [grams.ids[by][i] for i in columns],
        "harm": harm[rows, columns],
        "sketch_sd": (np.sqrt(variance) / scale)[rows, columns],
        "p": test.p[rows, columns],
        "q": test.q[rows, columns],
    })


def _joined(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(frames, ignore_index=True)
