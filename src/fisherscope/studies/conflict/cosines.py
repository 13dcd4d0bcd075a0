"""Cosines of mean gradients with intervals, from inner products of single examples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from fisherscope.structures import intervals
from fisherscope.studies.conflict.rows import Grams

FEWEST = 5
_ENDS = (0.025, 0.975)
Columns = dict[str, object]


def cosines(grams: Grams, *, resamples: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Cosine of every pair of tasks, in every layer and in all, with 95% intervals.

    With :math:`G_{nm} = \langle g_n, g_m\rangle` the numerator is the mean of :math:`G` over
    examples of the one and the other task. The squared norms are means over pairs of *different*
    examples (a U-statistic; Hoeffding, 1948): :math:`|\bar g|^2` itself has the expectation
    :math:`|\mathrm{E} g|^2 + \mathrm{tr}\,\mathrm{Cov}(g)/n`, so that noise would pass for norm
    and shrink every cosine, in a bootstrap sample twice as much. The bootstrap resamples the
    examples of both tasks and leaves out pairs of an example with its own copies. What sketches
    add is added to every resample as normal noise of the variance that they have at most.

    Args:
        grams: Inner products.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        A row per pair, scope and metric; and a row per task, scope and metric with its norm.
    """
    draws = _Draws(grams, resamples, seed)
    pairs, norms = [], []
    for metric in grams.products:
        for scope in grams.scopes:
            found = {task: draws.product(metric, scope, task, task) for task in grams.slices}
            for task, squared in found.items():
                norms.append(_norm(grams, metric, scope, task, squared))
            for a, b in itertools.combinations(grams.slices, 2):
                product = draws.product(metric, scope, a, b)
                pairs.append(_pair(grams, metric, scope, a, b, product, found))
    return pd.DataFrame(pairs), pd.DataFrame(norms)


class _Draws:
    """Resampled means of inner products; the first one is the data themselves."""

    def __init__(self, grams: Grams, resamples: int, seed: int):
        self.grams, self.rng = grams, np.random.default_rng(seed)
        self.numbers = {task: i for i, task in enumerate(grams.slices)}
        self.counts = {}
        for task, own in grams.slices.items():
            n = own.stop - own.start
            self.counts[task] = intervals.resamples(n, self.rng, resamples, itself=True)
        self.pairs = {
            (a, b): ((self.counts[a] @ self._distinct(a, b)) * self.counts[b]).sum(1)
            for a in self.counts
            for b in self.counts
        }

    def _distinct(self, a: str, b: str) -> np.ndarray:
        return self.grams.distinct[self.grams.slices[a], self.grams.slices[b]]

    def product(self, metric: str, scope: str, a: str, b: str) -> np.ndarray:
        """Unbiased product of the mean gradients per example, [1 + resamples]."""
        products = self.grams.pair(metric, scope, a, b) * self._distinct(a, b)
        total = ((self.counts[a] @ products) * self.counts[b]).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(self.pairs[a, b] > 0, total / self.pairs[a, b], np.nan)
        at = list(self.grams.scopes).index(scope)
        added = self.grams.mean_variance[metric][at, self.numbers[a], self.numbers[b]]
        if added > 0:
            mean[1:] += np.sqrt(added) * self.rng.standard_normal(len(mean) - 1)
        return mean


def _per_token(grams: Grams, a: str, b: str) -> float:
    # From the mean gradient of an example to that of a token.
    means = [grams.tokens[grams.slices[task]].mean() for task in (a, b)]
    return 1.0 / (means[0] * means[1])


def _norm(grams: Grams, metric: str, scope: str, task: str, squared: np.ndarray) -> Columns:
    n = len(grams.ids[task])
    scale = _per_token(grams, task, task)
    low, high = _interval(squared) if n >= FEWEST else (np.nan, np.nan)
    biased = grams.pair(metric, scope, task, task).mean()
    return {
        "task": task,
        "scope": scope,
        "metric": metric,
        "squared_norm": scale * squared[0],
        "low": scale * low,
        "high": scale * high,
        "biased": scale * biased,
        "n": n,
        "outcome": _few(n) or ("resolved" if low > 0 else "not_resolved"),
    }


def _pair(
    grams: Grams,
    metric: str,
    scope: str,
    a: str,
    b: str,
    product: np.ndarray,
    squared: Mapping[str, np.ndarray],
) -> Columns:
    counts = [len(grams.ids[task]) for task in (a, b)]
    few = _few(*counts)
    with np.errstate(invalid="ignore"):
        cosine = np.clip(product / np.sqrt(squared[a] * squared[b]), -1, 1)
    low, high = inner_low, inner_high = np.nan, np.nan
    outcome = few
    if not few:
        inner_low, inner_high = _interval(product)
        # Without a resolved norm there is no direction, so any cosine is possible.
        resolved = all(_interval(squared[task])[0] > 0 for task in (a, b))
        low, high = _interval(cosine) if resolved else (-1.0, 1.0)
        outcome = "conflict" if high < 0 else "aligned" if low > 0 else "not_resolved"
    scale = _per_token(grams, a, b)
    at = list(grams.scopes).index(scope)
    numbers = [list(grams.slices).index(task) for task in (a, b)]
    added = np.sqrt(grams.mean_variance[metric][at, numbers[0], numbers[1]])
    return {
        "task_a": a,
        "task_b": b,
        "scope": scope,
        "layer": grams.scopes[scope],
        "metric": metric,
        "cosine": cosine[0],
        "low": low,
        "high": high,
        "inner": scale * product[0],
        "inner_low": scale * inner_low,
        "inner_high": scale * inner_high,
        "sketch_sd": scale * added,
        "n_a": counts[0],
        "n_b": counts[1],
        "outcome": outcome,
    }


def _few(*counts: int) -> str:
    return "too_few_examples" if min(counts) < FEWEST else ""


def _interval(draws: np.ndarray) -> tuple[float, float]:
    known = draws[1:][np.isfinite(draws[1:])]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, _ENDS)
    return float(low), float(high)
