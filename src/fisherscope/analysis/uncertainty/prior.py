"""How strong the prior is: by marginal likelihood, or by a grid on labelled data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

from fisherscope.analysis.uncertainty.posterior import Posterior
from fisherscope.arguments import check_number
from fisherscope.errors import ParameterError

PriorOutcome = Literal["given", "marglik", "grid", "edge_of_grid"]
GRID = np.logspace(-4, 4, 25)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A posterior and how its prior came about.

    Attributes:
        posterior: The posterior.
        outcome: ``"given"``, ``"marglik"``, ``"grid"``, or ``"edge_of_grid"`` where the best
            value was the first or the last one tried.
    """

    posterior: Posterior
    outcome: PriorOutcome


def check_prior(setting: object) -> None:
    """Make sure that a prior precision is usable.

    Args:
        setting: What the caller passed.

    Raises:
        ParameterError: If it is neither ``"marglik"``, ``"grid"`` nor a finite number of at
            least 0.
    """
    if setting in ("marglik", "grid"):
        return
    try:
        check_number("prior_precision", setting, low=0)
    except ParameterError:
        raise ParameterError(
            f"prior_precision={setting!r} must be 'marglik', 'grid' or a finite number of at "
            "least 0"
        ) from None


def choose(
    setting: str | float,
    posterior: Posterior,
    distance: float,
    score: Callable[[list[Posterior]], np.ndarray],
) -> Chosen:
    """Settle the prior precision.

    Args:
        setting: ``"marglik"``, ``"grid"`` or a number.
        posterior: With any prior precision.
        distance: Squared distance of the weights from the prior's mean.
        score: For ``"grid"``: mean negative log-likelihood under each of several posteriors.

    Returns:
        The posterior to use.

    Raises:
        ParameterError: If the prior is flat and the Fisher singular, or there is no best value.
    """
    if setting == "marglik":
        return by_evidence(posterior, distance)
    if setting == "grid":
        return by_grid(posterior, score)
    given = replace(posterior, prior_precision=float(setting))
    if given.prior_precision == 0:
        try:
            given.logdet()
        except ParameterError as error:
            raise ParameterError(
                "prior_precision=0 leaves no finite variance in directions that the data say "
                f"nothing about ({error}) Pass a positive prior_precision, or estimate the Fisher "
                "for fewer parameters or on more examples."
            ) from error
    return Chosen(given, "given")


def by_evidence(posterior: Posterior, distance: float) -> Chosen:
    r"""Choose the prior precision that maximises the marginal likelihood.

    At the maximum :math:`\delta \|\theta^* - \mu_0\|^2` is the number of effective parameters,
    which falls as the left side rises: there is one maximum at most, below
    :math:`p / \|\theta^* - \mu_0\|^2`. Source: MacKay (1992).

    Args:
        posterior: With any prior precision.
        distance: Squared distance of the weights from the prior's mean.

    Returns:
        The posterior at the maximum.

    Raises:
        ParameterError: If there is no maximum: all weights are at the prior's mean, or the
            Fisher is zero.
    """
    p = posterior.fisher.n_parameters
    if distance == 0:
        raise ParameterError(
            "prior_precision='marglik': all covered weights are at the prior's mean, so that the "
            "evidence grows with the prior precision without end; pass a number or 'grid'"
        )
    if posterior.fisher.trace() == 0:
        raise ParameterError(
            "prior_precision='marglik': the Fisher is zero, so that the evidence grows as the "
            "prior precision falls without end; pass a number, or estimate on data that say "
            "something"
        )
    top = math.log(p / distance)

    def cost(log: float) -> float:
        return -replace(posterior, prior_precision=math.exp(log)).log_occam_factor(distance)

    found = minimize_scalar(
        cost, bounds=(top - 60, top), method="bounded", options={"xatol": 1e-8, "maxiter": 200}
    )
    return Chosen(replace(posterior, prior_precision=math.exp(float(found.x))), "marglik")


def by_grid(posterior: Posterior, score: Callable[[list[Posterior]], np.ndarray]) -> Chosen:
    """Choose the prior precision with the least negative log-likelihood of labelled data.

    Args:
        posterior: With any prior precision.
        score: Mean negative log-likelihood under each of several posteriors.

    Returns:
        The best posterior of the grid, 25 values from 1e-4 to 1e4.

    Raises:
        ParameterError: If no value gives a finite one.
    """
    several = [replace(posterior, prior_precision=float(value)) for value in GRID]
    values = score(several)
    if not np.isfinite(values).any():
        raise ParameterError(
            "prior_precision='grid': the negative log-likelihood of calibration= is not finite "
            "under any prior; look at its labels"
        )
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    edge = best in {0, len(GRID) - 1}
    return Chosen(several[best], "edge_of_grid" if edge else "grid")
