"""Stated probabilities against what came true, reckoned apart from the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

import fisherscope as fs

BINS, RESAMPLES = 15, 2000
Figures = dict[str, float]


@dataclass(frozen=True)
class Stated:
    """What a predictor says of some rows.

    Attributes:
        probabilities: float64 [n, c].
        true: int64 [n], the column that came true.
        k: How many of the columns are single classes; one more holds all others.
        example: int64 [n], number of each row's example.
    """

    probabilities: np.ndarray
    true: np.ndarray
    k: int
    example: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities[:, : self.k].max(1)

    @property
    def correct(self) -> np.ndarray:
        return (self.probabilities[:, : self.k].argmax(1) == self.true).astype(float)

    @property
    def nll(self) -> np.ndarray:
        return -np.log(self.probabilities[np.arange(len(self.true)), self.true])

    def per_example(self) -> dict[str, np.ndarray]:
        """Measure to sums over each example's rows [examples, ...]."""
        n = int(self.example.max()) + 1
        place = np.clip(np.ceil(self.confidence * BINS).astype(int) - 1, 0, BINS - 1)
        gaps = np.zeros((n, BINS))
        np.add.at(gaps, (self.example, place), self.confidence - self.correct)
        return {
            "nll": np.bincount(self.example, self.nll, n)[:, None],
            "ece": gaps,
            "rows": np.bincount(self.example, minlength=n).astype(float),
        }

    def honest(self, draws: int = 200) -> float:
        """The calibration error that so few rows would show if every confidence were true."""
        place = np.clip(np.ceil(self.confidence * BINS).astype(int) - 1, 0, BINS - 1)
        rng = np.random.default_rng(0)
        found = []
        for _ in range(draws):
            gaps = self.confidence - (rng.random(len(place)) < self.confidence)
            found.append(np.abs(np.bincount(place, gaps, BINS)).sum() / len(place))
        return float(np.mean(found))


def before(found: fs.Uncertainty) -> Stated:
    return _stated(found, softmax(found.outputs, -1))


def after(found: fs.Uncertainty) -> Stated:
    assert found.probabilities is not None
    return _stated(found, found.probabilities)


def rescaled(found: fs.Uncertainty) -> Stated:
    return _stated(found, softmax(found.outputs / found.softmax_temperature, -1))


def _stated(found: fs.Uncertainty, probabilities: np.ndarray) -> Stated:
    label = found.predictions["label"].to_numpy()
    hit = found.classes == label[:, None]
    k = found.classes.shape[1]
    true = np.where(hit.any(1), hit.argmax(1), k)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(found.predictions["example"]))}
    example = found.predictions["example"].map(numbers).to_numpy()
    return Stated(probabilities, true, k, example)


def change(old: Sequence[Stated], new: Sequence[Stated], measure: str) -> dict[str, object]:
    """A measure before and after as the mean over seeds, and its change.

    The 95% interval is the basic bootstrap's over examples, both predictors and all seeds on the
    same resamples (a calibration error is biased upwards, and its resamples once more).

    Returns:
        ``before``, ``after``, ``value``, ``low``, ``high`` and each seed's change.
    """
    n = len(old[0].per_example()["rows"])
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    whole = np.ones((1, n))

    def values(stated: Stated, weights: np.ndarray) -> np.ndarray:
        sums = stated.per_example()
        total = weights @ sums[measure]
        total = np.abs(total) if measure == "ece" else total
        return total.sum(1) / (weights @ sums["rows"])

    first, second = (np.array([values(one, whole)[0] for one in several]) for several in (old, new))
    resampled = np.mean(
        [values(b, counts) - values(a, counts) for a, b in zip(old, new, strict=True)], 0
    )
    value = float((second - first).mean())
    low, high = (2 * value - np.quantile(resampled, q) for q in (0.975, 0.025))
    return {
        "before": float(first.mean()),
        "after": float(second.mean()),
        "value": value,
        "low": float(low),
        "high": float(high),
        "seeds": (second - first).tolist(),
    }
