"""Losses of several seeds along their steps, resampled over seeds and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fisherscope.structures.intervals import resamples
from fisherscope.studies.brittleness.request import NEW
from fisherscope.studies.brittleness.running import Run

LEVEL = 0.95
ENDS = (1 - LEVEL) / 2, (1 + LEVEL) / 2


@dataclass(frozen=True, eq=False)
class Paths:
    """Mean losses of one model's runs, as measured and resampled.

    Attributes:
        steps: int64 ``[points]``.
        losses: Task to float64 ``[1 + resamples, points]``, nats per token; first the estimate.
    """

    steps: np.ndarray
    losses: Mapping[str, np.ndarray]

    @property
    def progress(self) -> np.ndarray:
        """Fall of the new task's loss since the start, ``[1 + resamples, points]``."""
        return self.losses[NEW][:, :1] - self.losses[NEW]

    def damage(self, task: str) -> np.ndarray:
        """Rise of an old task's loss since the start.

        Args:
            task: Its name.

        Returns:
            float64 ``[1 + resamples, points]``.
        """
        return self.losses[task] - self.losses[task][:, :1]


def resampled(runs: Sequence[Run], seed: int) -> Paths:
    r"""Mean losses over seeds and examples, with resamples of both.

    A resample draws seeds and, independently for each task, examples; the same ones for every
    model whose runs have these seeds, so that models are compared in pairs. Few seeds spread too
    little when they are drawn with replacement: with :math:`k_s` the times that seed s was drawn
    among n, its weight is :math:`(1 + c (k_s - 1)) / n` with :math:`c = t_{n-1} / z \cdot
    \sqrt{n/(n-1)}`, the quantiles of Student's and the normal distribution. Seeds alone then have
    the interval of Student (a rescaled bootstrap, Rao and Wu, 1988).

    Args:
        runs: Of one model, one per seed, none diverged, at least three.
        seed: Keys the resampling.

    Returns:
        The means.
    """
    rng = np.random.default_rng((seed, 0))
    shares = seed_weights(len(runs), rng)
    losses = {}
    for number, task in enumerate(sorted(runs[0].losses), start=1):
        tokens = runs[0].tokens[task]
        counts = resamples(len(tokens), (seed, number), itself=True)
        per_seed = np.stack([run.losses[task] for run in runs])  # [seeds, points, examples]
        mean = np.einsum("skn,bn->bsk", per_seed, counts, optimize=True)
        mean /= (counts @ tokens)[:, None, None]
        losses[task] = np.einsum("bs,bsk->bk", shares, mean)
    return Paths(runs[0].steps, losses)


def seed_weights(count: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of seeds: the mean, then resamples of it.

    Args:
        count: Number of seeds, at least 3.
        rng: Draws them.

    Returns:
        float64 ``[1 + resamples, count]``; each row sums to 1.
    """
    stretch = stats.t.ppf(ENDS[1], count - 1) / stats.norm.ppf(ENDS[1])
    stretch *= np.sqrt(count / (count - 1))
    weights = 1 + stretch * (resamples(count, rng, itself=True) - 1)
    return weights / count


def crossing(rising: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Where curves first reach a level, with straight lines between their points.

    Args:
        rising: ``[curves, points]``.
        level: ``[curves]``.

    Returns:
        float64 ``[curves]``, in points, counted from 0; infinite where the level is not reached.
    """
    reached = rising >= level[:, None]
    at = reached.argmax(1)
    rows = np.arange(len(rising))
    before = np.maximum(at - 1, 0)
    below, above = rising[rows, before], rising[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(at > 0, (level - below) / (above - below), 0.0)
    return np.where(reached.any(1), before + part, np.inf)


def read(curves: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Curves at a place between their points.

    Args:
        curves: ``[curves, points]``.
        where: ``[curves]``, finite, in points.

    Returns:
        float64 ``[curves]``.
    """
    rows = np.arange(len(curves))
    left = np.minimum(where.astype(int), curves.shape[1] - 1)
    right = np.minimum(left + 1, curves.shape[1] - 1)
    part = where - left
    return curves[rows, left] + part * (curves[rows, right] - curves[rows, left])


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """An estimate with its 95% percentile interval.

    Args:
        draws: The estimate, then its resamples.

    Returns:
        Value, low, high.
    """
    low, high = np.quantile(draws[1:], ENDS)
    return float(draws[0]), float(low), float(high)
