"""How good probabilities are: NLL, Brier score, calibration errors, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import chi2

from fisherscope.analysis.uncertainty.rows import Rows
from fisherscope.errors import ParameterError
from fisherscope.structures.intervals import RESAMPLES, resamples

Outcome = Literal["measured", "no_labels", "too_few_examples", "one_class"]
BINS = 15
FEWEST = 10


@dataclass(frozen=True, eq=False)
class Quality:
    """Per row, what the measures are made of.

    Attributes:
        means: Measure to float64 [n], of which it is the mean.
        confidence: float64 [n], probability of the most likely class, or ``None``.
        correct: float64 [n], whether that is the label, or ``None``.
    """

    means: dict[str, np.ndarray]
    confidence: np.ndarray | None = None
    correct: np.ndarray | None = None


def of_classes(rows: Rows, probabilities: np.ndarray) -> Quality:
    """Score probabilities by the labels.

    The Brier score is the sum over all classes (0 to 2), also over those in the pooled column.

    Args:
        rows: Labelled rows.
        probabilities: [n, c].

    Returns:
        Negative log-likelihood (nats), Brier score, confidence and accuracy of each row.
    """
    n, k = rows.classes.shape
    hit = np.zeros_like(probabilities)
    hit[np.arange(n), rows.column] = 1
    own = probabilities[np.arange(n), rows.column]
    with np.errstate(divide="ignore"):
        nll = -np.log(own) - rows.inside
    brier = np.square(probabilities[:, :k] - hit[:, :k]).sum(1)
    if rows.pooled:
        rest, outside = probabilities[:, k], rows.column == k
        brier += rest**2 * rows.squares + outside * (1 - 2 * rest * np.exp(rows.inside))
    confidence = probabilities[:, :k].max(1)
    correct = (probabilities[:, :k].argmax(1) == rows.column).astype(float)
    return Quality({"nll": nll, "brier": brier, "accuracy": correct}, confidence, correct)


def of_values(rows: Rows, mean: np.ndarray, covariance: np.ndarray) -> Quality:
    """Score normal predictive distributions by real targets.

    Args:
        rows: Labelled rows of a regression.
        mean: [n, c].
        covariance: [n, c, c], observation noise included.

    Returns:
        Negative log-likelihood (nats), squared error, and whether the target lies in the
        smallest region of 95% probability.
    """
    away = rows.label - mean
    squared = np.einsum("nc,nc->n", away, np.linalg.solve(covariance, away[..., None])[..., 0])
    logdet = np.linalg.slogdet(covariance)[1]
    size = away.shape[1]
    inside = (squared <= chi2.ppf(0.95, size)).astype(float)
    return Quality({
        "nll": 0.5 * (squared + logdet + size * np.log(2 * np.pi)),
        "squared_error": np.square(away).sum(1),
        "coverage_95": inside,
    })


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, *, equal_mass: bool = False, bins: int = BINS
) -> float:
    r"""Expected calibration error :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|`.

    Source: Naeini, Cooper and Hauskrecht (2015); equal masses: Nixon et al. (2019).

    Args:
        confidence: [n], in 0 to 1.
        correct: [n], 0 or 1.
        equal_mass: As many rows in each bin, instead of bins of equal width. Default: ``False``.
        bins: Number of bins. Default: 15.

    Returns:
        Between 0 and 1.

    Raises:
        ParameterError: If there are no rows, or a confidence is not in 0 to 1.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if not len(confidence) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise ParameterError("confidence must hold at least one number, all in 0 to 1")
    place = _bins(confidence, equal_mass, bins)
    gaps = np.bincount(place, confidence - correct, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _bins(confidence: np.ndarray, equal_mass: bool, bins: int) -> np.ndarray:
    if not equal_mass:
        # A bin holds its upper edge: rounding up puts a confidence of 1 into the last.
        return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    place = np.empty(len(confidence), int)
    for number, some in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
        place[some] = number
    return place


def fit_temperature(rows: Rows) -> float:
    """The temperature that scales logits to the least negative log-likelihood.

    Source: Guo et al. (2017). Pooled classes are scaled as one.

    Args:
        rows: Labelled rows.

    Returns:
        By what the logits are to be divided, between 1/100 and 100.
    """
    n = np.arange(len(rows.column))

    def nll(log: float) -> float:
        return -float(log_softmax(rows.outputs * np.exp(-log), -1)[n, rows.column].mean())

    edge = np.log(100)
    found = minimize_scalar(nll, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def scaled(rows: Rows, temperature: float) -> np.ndarray:
    """Probabilities of scaled logits.

    Args:
        rows: The rows.
        temperature: By what the logits are divided.

    Returns:
        [n, c].
    """
    return softmax(rows.outputs / temperature, -1)


def table(rows: Rows, qualities: Mapping[str, Quality], seed: int) -> tuple[pd.DataFrame, Outcome]:
    """Measures of several predictors of the same rows, and their changes from the first.

    Intervals are 95% bootstrap intervals over examples, all rows of an example together, with
    the bins held fixed; changes are paired. A calibration error of few rows is biased upwards,
    and its resamples once more: its interval reflects the resamples at the estimate.

    Args:
        rows: Labelled rows.
        qualities: Name of a predictor to its rows' quality; the first is compared with.
        seed: Of the resampling.

    Returns:
        One row per predictor and measure, and the outcome. Intervals are NaN with fewer than
        10 examples (``"too_few_examples"``).
    """
    examples = len(rows.ids)
    few = examples < FEWEST
    counts = resamples(examples, seed, RESAMPLES)
    size = np.bincount(rows.example, minlength=examples).astype(float)
    weights = None if few else (counts, counts @ size)
    found: dict[tuple[str, str], tuple[float, np.ndarray | None]] = {}
    for name, quality in qualities.items():
        for measure, values in quality.means.items():
            sums = np.bincount(rows.example, values, examples)
            resampled = None if weights is None else (weights[0] @ sums) / weights[1]
            found[name, measure] = float(values.mean()), resampled
        for measure, equal_mass in (("ece", False), ("ece_equal_mass", True)):
            if quality.confidence is not None and quality.correct is not None:
                gaps = quality.confidence - quality.correct
                place = _bins(quality.confidence, equal_mass, BINS)
                sums = np.zeros((examples, BINS))
                np.add.at(sums, (rows.example, place), gaps)
                value = float(np.abs(sums.sum(0)).sum() / len(gaps))
                resampled = None
                if weights is not None:
                    resampled = np.abs(weights[0] @ sums).sum(1) / weights[1]
                found[name, measure] = value, resampled
    first = next(iter(qualities))
    return pd.DataFrame([
        _line(name, measure, *one, *found[first, measure], name == first, len(rows.column))
        for (name, measure), one in found.items()
    ]), _outcome(rows, few)


def _line(
    name: str,
    measure: str,
    value: float,
    resampled: np.ndarray | None,
    before: float,
    resampled_before: np.ndarray | None,
    is_first: bool,
    n: int,
) -> dict[str, Any]:
    line: dict[str, Any] = {"predictor": name, "measure": measure, "value": value}
    biased = measure.startswith("ece")
    line["low"], line["high"] = _interval(value, resampled, biased, floor=0.0)
    change = None
    if resampled is not None and resampled_before is not None:
        change = resampled - resampled_before
    line["change"] = np.nan if is_first else value - before
    low, high = _interval(value - before, change, biased)
    line["change_low"], line["change_high"] = (np.nan, np.nan) if is_first else (low, high)
    line["rows"] = n
    return line


def _interval(
    value: float, resampled: np.ndarray | None, reflect: bool, floor: float = -np.inf
) -> tuple[float, float]:
    if resampled is None:
        return np.nan, np.nan
    low, high = np.quantile(resampled, [0.025, 0.975])
    if reflect:
        low, high = max(2 * value - high, floor), max(2 * value - low, floor)
    return float(low), float(high)


def _outcome(rows: Rows, few: bool) -> Outcome:
    if few:
        return "too_few_examples"
    if not rows.real and len(np.unique(rows.label)) == 1:
        return "one_class"
    return "measured"
