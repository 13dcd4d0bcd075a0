"""``fs.uncertainty``: how sure a model may be of its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.uncertainty.calibration import fit_temperature, of_classes, scaled, table
from fisherscope.analysis.uncertainty.posterior import Posterior, check_model, prior_distance
from fisherscope.analysis.uncertainty.predict import (
    Kind,
    Link,
    Settings,
    frame,
    losses,
    predict,
    qualities,
)
from fisherscope.analysis.uncertainty.prior import check_prior, choose
from fisherscope.analysis.uncertainty.result import Uncertainty
from fisherscope.analysis.uncertainty.rows import ask
from fisherscope.arguments import check_whole
from fisherscope.defaults import DEFAULTS
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import DataError, ParameterError
from fisherscope.structures import Fisher


@needs_whole
@torch.inference_mode(False)
def uncertainty(
    model: nn.Module,
    fisher: Fisher,
    batch: Any,
    *,
    kind: Kind = "laplace",
    prior_precision: Literal["marglik", "grid"] | float = "marglik",
    temperature: float = 1.0,
    link: Link = "probit",
    samples: int = 100,
    seed: int = DEFAULTS.seed,
    candidates: int | Sequence[int] | None = None,
    calibration_batch: Any = None,
    prior_mean: Mapping[str, Tensor] | None = None,
    observations: int | None = None,
    noise_variance: float = 1.0,
    batch_size: int | None = DEFAULTS.batch_size,
    progress: bool = False,
) -> Uncertainty:
    r"""Predictions of a model with what its Fisher says about their uncertainty.

    The weights have the posterior :math:`N(\theta^*, P^{-1})` with

    .. math:: P = \frac{N}{T \sigma^2} F + \delta I

    where F is the Fisher per unit and N the number of independent units that it stands for:
    ``N F`` is the sum over the data, so that more data mean less uncertainty, and counting
    tokens or examples makes no difference as long as F and N count the same. Parameters that
    the Fisher doesn't cover are fixed: a Fisher of the last layer gives a last-layer Laplace
    approximation. The curvature of the model's own labels (``fisher_type="type-2"``, or
    ``"mc"``) is the generalised Gauss-Newton matrix that belongs here; an empirical Fisher
    is taken as it is. Sources: MacKay (1992); Immer, Korzepa and Bauer (2021).

    * ``"laplace"``: the model linearised in its weights, outputs with the covariance
      :math:`J P^{-1} J^\top`, and from there to probabilities by ``link``.
    * ``"monte_carlo"``: the mean softmax of ``samples`` models with sampled weights. Far from
      linear models are often worse than the model itself.
    * ``"cramer_rao"``: the model's own probabilities, with standard errors by the delta method,
      and those of all parameters, :math:`\sqrt{\mathrm{diag}\, P^{-1}}`. With
      ``prior_precision=0`` this is the Cramér-Rao bound; a singular Fisher is refused then.

    Args:
        model: The model that the Fisher was estimated on; it comes back bitwise.
        fisher: A Fisher of any structure (``"grouped"`` counts as its mean over each group).
        batch: What is to be predicted, as in :func:`fisherscope.estimate`, with labels or (for
            classes and values) without. A language model predicts every supervised token.
        kind: See above. Default: ``"laplace"``.
        prior_precision: :math:`\delta`: ``"marglik"`` for the maximum of the marginal
            likelihood, ``"grid"`` for the least negative log-likelihood of the linearised
            model on ``calibration_batch`` among 25 values from 1e-4 to 1e4, or a number.
            Default: ``"marglik"``.
        temperature: T of the posterior. Default: 1.
        link: From linearised logits to probabilities: ``"probit"``
            (:func:`fisherscope.analysis.uncertainty.probit`) or ``"samples"`` of the logits.
            Default: ``"probit"``.
        samples: Number of samples of weights or logits. Default: 100.
        seed: Of the samples and the bootstrap. Default: 0.
        candidates: Which classes are told apart. A number: so many most likely ones of each
            row, and all others pooled into one whose linearised log-sum-exp varies, too; within
            the pool the shares are the model's own. Several classes: only these, with
            probabilities given that it is one of them. Default: ``None``, all classes of a
            classifier, the 10 most likely tokens of a language model. Each costs one backward
            pass per position of the longest example.
        calibration_batch: Labelled data other than ``batch``, for ``"grid"`` and for the
            baseline: temperature scaling (Guo et al. 2017) fitted on it. Default: ``None``.
        prior_mean: Parameter name to the prior's mean, for instance the weights before
            fine-tuning; absent ones are zero. Default: ``None``, all zero.
        observations: N, if the Fisher was estimated on a part of the training data.
            Default: ``None``, ``fisher.n_units``.
        noise_variance: :math:`\sigma^2` of the observations of a regression, 1 otherwise.
            Default: 1.
        batch_size: Examples per pass. Default: ``None``, packs by tokens and classes.
        progress: Show a progress bar over samples. Default: ``False``.

    Returns:
        Predictions, and their quality where there are labels.

    Raises:
        ParameterError: If an option makes no sense, the Fisher's parameters are not the
            model's, or it is singular and the prior flat. A Fisher of other weights raises
            ``IdentityError``; bad data raise as in :func:`fisherscope.estimate`.
        DataError: If ``calibration_batch`` has no labels, or a label is not among
            ``candidates``.
    """
    settings = Settings(kind, link, samples, seed, temperature, noise_variance, progress)
    check_prior(prior_precision)
    if observations is not None:
        check_whole("observations", observations, low=1)
    check_model(model, fisher)
    if fisher.identity.likelihood != "regression" and noise_variance != 1:
        raise ParameterError("noise_variance= is for a regression; leave it at 1")
    if prior_precision == "grid" and calibration_batch is None:
        raise ParameterError("prior_precision='grid' needs labelled data: pass calibration_batch=")
    question = ask(model, fisher, batch, candidates, batch_size)
    reference = None
    if calibration_batch is not None:
        reference = ask(model, fisher, calibration_batch, candidates, batch_size)
        if not reference.labelled:
            raise DataError("calibration_batch has no labels; it is fitted on them")
    count = fisher.n_units if observations is None else observations
    distance = prior_distance(model, fisher, prior_mean)
    chosen = choose(
        prior_precision,
        Posterior(fisher, count, 0.0, temperature * noise_variance),
        distance,
        lambda several: losses(reference, several, settings),
    )
    rows = question.answer()
    prediction = predict(question, rows, chosen.posterior, settings)
    found = qualities(rows, prediction, settings) if rows.labelled else {}
    scale = None
    if reference is not None and not rows.real:
        scale = fit_temperature(reference.answer())
        if found:
            found["temperature_scaling"] = of_classes(rows, scaled(rows, scale))
    quality, outcome = table(rows, found, seed) if found else (pd.DataFrame(), "no_labels")
    errors = {}
    if kind == "cramer_rao":
        errors = {name: v.sqrt() for name, v in chosen.posterior.variances().items()}
    return Uncertainty(
        kind=kind,
        predictions=frame(rows, prediction, settings),
        quality=quality,
        outcome=outcome,
        prior_precision=chosen.posterior.prior_precision,
        prior_outcome=chosen.outcome,
        temperature=temperature,
        observations=count,
        unit=fisher.identity.unit,
        fisher_type=fisher.identity.fisher_type,
        structure=fisher.identity.structure,
        log_occam_factor=chosen.posterior.log_occam_factor(distance),
        effective_parameters=chosen.posterior.effective_parameters(),
        softmax_temperature=scale,
        noise_variance=noise_variance if rows.real else None,
        classes=rows.classes,
        pooled=rows.pooled,
        outputs=rows.outputs,
        covariance=prediction.covariance,
        probabilities=prediction.probabilities,
        standard_errors=errors,
    )
