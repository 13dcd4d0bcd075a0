"""The Gaussian posterior that a Fisher stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fisherscope.analysis.access import weights
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import Fisher
from fisherscope.structures.vectors import check_vector, total


@dataclass(frozen=True, eq=False)
class Posterior:
    r"""The normal distribution :math:`N(\theta^*, P^{-1})` around the model's weights.

    The precision is :math:`P = \frac{N}{T} F + \delta I` with the Fisher F as a mean per unit
    and N independent units: N F is the sum over the data, whatever the unit. Source: MacKay
    (1992); Daxberger et al. (2021).

    Attributes:
        fisher: F; parameters that it doesn't cover are fixed.
        observations: N, in the Fisher's unit.
        prior_precision: :math:`\delta` of the prior :math:`N(\mu_0, \delta^{-1} I)`; 0 for a
            flat one.
        temperature: T; below 1 the posterior is colder (narrower) than Bayes' rule makes it.
            The noise variance of a regression is a factor of it.
    """

    fisher: Fisher
    observations: float
    prior_precision: float
    temperature: float

    @property
    def _scale(self) -> float:
        # P = (N/T) (F + δT/N I): the structures know how to damp, not how to weigh.
        return self.temperature / self.observations

    @property
    def _damping(self) -> float:
        return self.prior_precision * self._scale

    def blocks(self) -> list[tuple[str, ...]]:
        """Parameters between which the covariance is not zero.

        Returns:
            Names of each block.
        """
        if self.fisher.layout:
            return [block.names for block in self.fisher.layout]
        return [(name,) for name in self.fisher.identity.parameters]

    def multiply(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product of the covariance with a vector or a batch of them.

        Args:
            v: Parameter name to tensor, as for ``fisher.solve``.

        Returns:
            New CPU tensors.
        """
        solved = self.fisher.solve(v, damping=self._damping)
        return {name: tensor * self._scale for name, tensor in solved.items()}

    def sample(self, seed: int) -> dict[str, Tensor]:
        """A displacement from the mean.

        Args:
            seed: Seed; equal seeds give equal displacements.

        Returns:
            Parameter name to CPU tensor of its shape.
        """
        drawn = self.fisher.sample(1, damping=self._damping, seed=seed)
        return {name: tensor[0] * math.sqrt(self._scale) for name, tensor in drawn.items()}

    def variances(self) -> dict[str, Tensor]:
        """The diagonal of the covariance.

        Returns:
            Parameter name to CPU tensor of its shape.
        """
        diagonal = self.fisher.inverse_diagonal(damping=self._damping)
        return {name: tensor * self._scale for name, tensor in diagonal.items()}

    def logdet(self) -> float:
        """The log-determinant of the precision P.

        Returns:
            Nats.
        """
        own = self.fisher.logdet(damping=self._damping)
        return own - self.fisher.n_parameters * math.log(self._scale)

    def log_occam_factor(self, distance: float) -> float:
        r"""What the log evidence adds to the log-likelihood of the data at the weights.

        .. math:: -\tfrac12 (\log\det P - p \log\delta + \delta \|\theta^* - \mu_0\|^2)

        The sum is Laplace's approximation of the log marginal likelihood, and exact for a
        linear model with Gaussian noise and the dense type-2 Fisher. With a temperature the
        log-likelihood is to be divided by it.

        Args:
            distance: Squared distance of the weights from the prior's mean.

        Returns:
            Nats; minus infinity for a flat prior. Source: MacKay (1992).
        """
        if self.prior_precision == 0:
            return -math.inf
        prior = self.fisher.n_parameters * math.log(self.prior_precision)
        return -0.5 * (self.logdet() - prior + self.prior_precision * distance)

    def effective_parameters(self) -> float:
        r"""How many parameters the data determine: :math:`p - \delta \mathrm{tr} P^{-1}`.

        Returns:
            Between 0 and the number of parameters. Source: MacKay (1992).
        """
        traces = (total(tensor) for tensor in self.variances().values())
        return self.fisher.n_parameters - self.prior_precision * math.fsum(traces)


def prior_distance(
    model: nn.Module, fisher: Fisher, prior_mean: Mapping[str, Tensor] | None
) -> float:
    """Squared distance of the Fisher's parameters from the prior's mean.

    Args:
        model: The model.
        fisher: Whose parameters count.
        prior_mean: Parameter name to mean; absent ones are zero, ``None`` is all zero.

    Returns:
        The sum over all covered parameters. A mean of unknown parameters or wrong shapes
        raises ``ParameterError``.
    """
    mean = prior_mean or {}
    check_vector(mean, fisher.identity.parameters)
    parts = []
    for name, tensor in weights(fisher, model, "the prior").items():
        away = tensor.double()
        if name in mean:
            away = away - mean[name].detach().cpu().double()
        parts.append(total(away, away))
    return math.fsum(parts)


def check_model(model: nn.Module, fisher: Fisher) -> None:
    """Make sure that a Fisher is the model's.

    Args:
        model: The model.
        fisher: The Fisher.

    Raises:
        ParameterError: If ``fisher`` is no Fisher.
        IdentityError: If it was estimated at other weights.
    """
    if not isinstance(fisher, Fisher):
        raise ParameterError(f"fisher is a {type(fisher).__name__}; pass what fs.estimate returned")
    weights(fisher, model, "the posterior")
    if (own := model_fingerprint(model)) != fisher.identity.model_fingerprint:
        raise IdentityError(
            f"the Fisher is of another model: model_fingerprint is {own!r}, its own "
            f"{fisher.identity.model_fingerprint!r}. A posterior is centred where its Fisher was "
            "estimated: pass that model, or estimate at these weights."
        )
