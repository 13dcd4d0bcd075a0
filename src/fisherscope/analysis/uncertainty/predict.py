"""From a posterior to predictions: linearised, sampled, or the model's own with an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import softmax
from tqdm.auto import tqdm

from fisherscope.analysis.uncertainty import links
from fisherscope.analysis.uncertainty.calibration import Quality, of_classes, of_values
from fisherscope.analysis.uncertainty.jacobian import covariances
from fisherscope.analysis.uncertainty.links import Predictive, Running
from fisherscope.analysis.uncertainty.posterior import Posterior
from fisherscope.analysis.uncertainty.rows import Question, Rows
from fisherscope.arguments import check_choice, check_number, check_whole
from fisherscope.engine.displace import displaced

Kind = Literal["laplace", "cramer_rao", "monte_carlo"]
Link = Literal["probit", "samples"]


@dataclass(frozen=True)
class Settings:
    """Options of a prediction; checked.

    Attributes:
        kind: ``"laplace"``, ``"cramer_rao"`` or ``"monte_carlo"``.
        link: ``"probit"`` or ``"samples"``.
        samples: Number of samples.
        seed: Of the samples.
        temperature: Of the posterior.
        noise_variance: Of a regression.
        progress: Show a progress bar.
    """

    kind: Kind
    link: Link
    samples: int
    seed: int
    temperature: float
    noise_variance: float
    progress: bool

    def __post_init__(self) -> None:
        for name, allowed in (("kind", Kind), ("link", Link)):
            check_choice(name, getattr(self, name), get_args(allowed))
        for name in ("temperature", "noise_variance"):
            check_number(name, getattr(self, name), above=0)
        check_whole("samples", self.samples, low=2)
        check_whole("seed", self.seed, low=0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a posterior makes of some rows.

    Attributes:
        covariance: float64 [n, c, c] of the outputs, or ``None``.
        predictive: Of classes, or ``None`` for a regression.
        mean: float64 [n, c] of a regression, or ``None``.
    """

    covariance: np.ndarray | None
    predictive: Predictive | None = None
    mean: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray | None:
        """Of classes [n, c]."""
        return None if self.predictive is None else self.predictive.probabilities


def predict(question: Question, rows: Rows, posterior: Posterior, settings: Settings) -> Prediction:
    """Predict the rows of a batch.

    Args:
        question: The batch.
        rows: Its rows.
        posterior: The posterior.
        settings: How.

    Returns:
        The prediction.
    """
    if settings.kind == "monte_carlo":
        return _sampled_weights(question, rows, posterior, settings)
    (covariance,) = covariances(question, rows, [posterior])
    return _linearised(rows, covariance, settings)


def _linearised(rows: Rows, covariance: np.ndarray, settings: Settings) -> Prediction:
    if rows.real:
        return Prediction(covariance, mean=rows.outputs)
    if settings.kind == "cramer_rao":
        own = softmax(rows.outputs, -1)
        return Prediction(covariance, Predictive(own, links.delta(own, covariance)))
    if settings.link == "probit":
        return Prediction(covariance, links.probit(rows.outputs, covariance))
    return Prediction(
        covariance, links.sampled(rows.outputs, covariance, settings.samples, settings.seed)
    )


def _sampled_weights(
    question: Question, rows: Rows, posterior: Posterior, settings: Settings
) -> Prediction:
    running = Running(*rows.outputs.shape)
    first = np.zeros_like(rows.outputs)
    second = np.zeros((*rows.outputs.shape, rows.outputs.shape[1])) if rows.real else None
    seeds = np.random.SeedSequence(settings.seed).generate_state(settings.samples)
    for seed in tqdm(seeds, desc="samples", unit="model", disable=not settings.progress):
        with displaced(question.prepared.parameters, _placed(question, posterior, int(seed))):
            outputs = question.answer(None if rows.real else rows.classes).outputs
        if second is None:
            running.add(softmax(outputs, -1))
        else:
            off = outputs - rows.outputs
            first += off
            second += off[:, :, None] * off[:, None, :]
    if second is None:
        return Prediction(None, running.predictive())
    n = settings.samples
    mean = first / n
    covariance = (second - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)
    return Prediction(covariance, mean=rows.outputs + mean)


def _placed(question: Question, posterior: Posterior, seed: int):
    parameters = question.prepared.parameters
    drawn = posterior.sample(seed)
    return {name: tensor.to(parameters[name].device) for name, tensor in drawn.items()}


def losses(
    reference: Question | None, posteriors: Sequence[Posterior], settings: Settings
) -> np.ndarray:
    """Mean negative log-likelihood of labelled rows under several posteriors, linearised.

    Args:
        reference: The labelled batch.
        posteriors: Over the same Fisher.
        settings: How.

    Returns:
        float64, one number per posterior.
    """
    assert reference is not None
    rows = reference.answer()
    linear = Settings(**{**vars(settings), "kind": "laplace"})
    found = []
    for covariance in covariances(reference, rows, posteriors):
        prediction = _linearised(rows, covariance, linear)
        found.append(qualities(rows, prediction, linear)["laplace"].means["nll"].mean())
    return np.array(found)


def qualities(rows: Rows, prediction: Prediction, settings: Settings) -> dict[str, Quality]:
    """Score the model as it is, and the prediction.

    Args:
        rows: Labelled rows.
        prediction: Of these rows.
        settings: How it came about.

    Returns:
        ``"map"`` and the kind, which ``"cramer_rao"`` has nothing to add to.
    """
    found = {}
    if rows.real:
        n, c = rows.outputs.shape
        noise = np.broadcast_to(settings.noise_variance * np.eye(c), (n, c, c))
        found["map"] = of_values(rows, rows.outputs, noise)
        if settings.kind != "cramer_rao":
            assert prediction.covariance is not None and prediction.mean is not None
            found[settings.kind] = of_values(rows, prediction.mean, prediction.covariance + noise)
        return found
    found["map"] = of_classes(rows, softmax(rows.outputs, -1))
    if settings.kind != "cramer_rao":
        assert prediction.probabilities is not None
        found[settings.kind] = of_classes(rows, prediction.probabilities)
    return found


def frame(rows: Rows, prediction: Prediction, settings: Settings) -> pd.DataFrame:
    """The predictions as a table.

    Args:
        rows: The rows.
        prediction: Of these rows.
        settings: How it came about.

    Returns:
        One row per example or token, for a regression per value; see
        :class:`~fisherscope.analysis.uncertainty.result.Uncertainty`.
    """
    ids = np.array(rows.ids, dtype=object)[rows.example]
    if prediction.predictive is None:
        assert prediction.covariance is not None and prediction.mean is not None
        n, c = rows.outputs.shape
        variance = np.diagonal(prediction.covariance, axis1=1, axis2=2).reshape(-1)
        found = pd.DataFrame({
            "example": np.repeat(ids, c),
            "value": np.tile(np.arange(c), n),
            "mean": prediction.mean.reshape(-1),
            "sd": np.sqrt(variance),
            "predictive_sd": np.sqrt(variance + settings.noise_variance),
        })
        if rows.labelled:
            found["label"] = rows.label.reshape(-1)
        return found
    each, k = np.arange(len(rows.column)), rows.classes.shape[1]
    own = softmax(rows.outputs, -1)
    p = prediction.predictive
    before, after = own[:, :k].argmax(1), p.probabilities[:, :k].argmax(1)
    found = pd.DataFrame({
        "example": ids,
        "position": rows.position,
        "map_class": rows.classes[each, before],
        "map_confidence": own[each, before],
        "predicted": rows.classes[each, after],
        "confidence": p.probabilities[each, after],
        "confidence_sd": p.spread[each, after],
        "entropy": links.entropy(p.probabilities),
        "information": np.nan if p.information is None else p.information,
    })
    if rows.labelled:
        found["label"] = rows.label
    return found
