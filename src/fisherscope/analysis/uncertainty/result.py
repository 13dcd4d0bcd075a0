"""What ``fs.uncertainty`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from fisherscope.analysis.uncertainty.calibration import Outcome
from fisherscope.analysis.uncertainty.prior import PriorOutcome
from fisherscope.results import Result


@dataclass(frozen=True, eq=False)
class Uncertainty(Result):
    """Predictions with their uncertainty, and how good they are where labels say it.

    Attributes:
        kind: ``"laplace"``, ``"cramer_rao"`` or ``"monte_carlo"``.
        predictions: One row per example, or per supervised token of a language model.
            Classes: ``map_class``, ``map_confidence`` (of the model as it is), ``predicted``,
            ``confidence``, ``confidence_sd`` (standard deviation of that probability under
            the posterior), ``entropy`` (nats), ``information`` (nats that the label would
            tell about the weights; NaN unless sampled), and ``label``. Values: ``mean``,
            ``sd`` (of the function) and ``predictive_sd`` (observation noise included), one
            row per value.
        quality: One row per predictor (``"map"``, the kind, ``"temperature_scaling"``) and
            measure with 95% intervals, and its change from the first; empty without labels.
        outcome: ``"measured"``, ``"no_labels"``, ``"too_few_examples"`` (fewer than 10, so
            that there are no intervals) or ``"one_class"`` (all labels are equal, so that
            calibration says nothing about the other classes).
        prior_precision: The prior precision used.
        prior_outcome: ``"given"``, ``"marglik"``, ``"grid"`` or ``"edge_of_grid"``.
        temperature: Of the posterior.
        observations: N, independent units that the posterior counts.
        unit: What such a unit is, ``"example"``, ``"token"``, ...
        fisher_type: Labels of the Fisher.
        structure: What it keeps.
        log_occam_factor: What the log evidence adds to the log-likelihood of the Fisher's
            data, nats.
        effective_parameters: How many parameters the data determine.
        softmax_temperature: The fitted one of ``"temperature_scaling"``, or ``None``.
        noise_variance: Of the observations of a regression, or ``None``.
        classes: int64 [n, k], classes told apart in each row.
        pooled: Whether all other classes are one more column.
        outputs: float64 [n, c], logits or predicted values of the model as it is.
        covariance: float64 [n, c, c] of the outputs; ``None`` for sampled weights of a
            classifier.
        probabilities: float64 [n, c]; ``None`` for a regression.
        standard_errors: Parameter name to standard errors of its shape; ``"cramer_rao"`` only.
    """

    kind: str
    predictions: pd.DataFrame
    quality: pd.DataFrame
    outcome: Outcome
    prior_precision: float
    prior_outcome: PriorOutcome
    temperature: float
    observations: float
    unit: str
    fisher_type: str
    structure: str
    log_occam_factor: float
    effective_parameters: float
    softmax_temperature: float | None
    noise_variance: float | None
    classes: np.ndarray
    pooled: bool
    outputs: np.ndarray
    covariance: np.ndarray | None
    probabilities: np.ndarray | None
    standard_errors: dict[str, Tensor] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """The measures of quality, or without labels the predictions.

        Returns:
            A copy of ``quality`` or ``predictions``.
        """
        return (self.predictions if self.quality.empty else self.quality).copy()

    def parameters(self) -> pd.DataFrame:
        """Standard errors of the parameters, tensor by tensor.

        Returns:
            Columns ``tensor``, ``n_parameters``, ``smallest``, ``median`` and ``largest``;
            empty unless the kind is ``"cramer_rao"``.
        """
        columns = ["tensor", "n_parameters", "smallest", "median", "largest"]
        return pd.DataFrame(
            [
                (n, e.numel(), float(e.min()), float(e.double().median()), float(e.max()))
                for n, e in self.standard_errors.items()
            ],
            columns=columns,
        )
