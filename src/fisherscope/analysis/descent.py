"""A task's mean gradient, and the step that it would like to take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import inner_products
from fisherscope.arguments import check_number
from fisherscope.data import batches
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import DataError
from fisherscope.naming import Selection
from fisherscope.preparation import Prepared, prepare, settled


@dataclass(frozen=True, eq=False)
class Descent:
    """A mean gradient and how far to go against it.

    Attributes:
        gradient: Parameter name to mean gradient of the loss, per token, fp32, on the CPU.
        rate: Step length in units of the gradient: the learning rate of one plain step.
    """

    gradient: dict[str, Tensor]
    rate: float

    @property
    def step(self) -> dict[str, Tensor]:
        """The displacement: minus the rate times the gradient."""
        return {name: -self.rate * g for name, g in self.gradient.items()}

    @property
    def norm(self) -> float:
        """Euclidean length of the step."""
        return self.rate * math.sqrt(_squared(self.gradient))


@needs_whole
@torch.inference_mode(False)
def mean_gradient(
    model: nn.Module,
    data: Any,
    *,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
) -> dict[str, Tensor]:
    r"""The gradient of a task's mean loss: :math:`g = \frac1T \sum_n g_n` over T tokens.

    In eval mode and whatever ``requires_grad`` says; tied parameters under their first name.

    Args:
        model: The model; it comes back untouched, ``.grad`` included.
        data: The task, as in :func:`fisherscope.estimate`.
        parameters: Which, as in :func:`fisherscope.estimate`. Default: ``None``, all.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many. Default: ``None``, all.

    Returns:
        Parameter name to gradient in nats per token, fp32 or better, on the CPU.
    """
    config = FisherConfig(
        parameters=parameters,
        likelihood=likelihood,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    return gradient_of(prepare(model, data, config))


@needs_whole
def descent_step(
    model: nn.Module,
    data: Any,
    *,
    fraction: float = 0.5,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
) -> dict[str, Tensor]:
    r"""A step of steepest descent on a task, as long as its own curvature allows.

    With the mean loss gradient g and the true Fisher F of the task (one label draw), the
    quadratic model :math:`-\eta\, g^\top g + \frac12 \eta^2 g^\top F g` is least at the
    Cauchy step :math:`\eta = g^\top g / g^\top F g`; the result is
    :math:`\delta = -\text{fraction} \cdot \eta\, g`. Source: Nocedal, Wright (2006), §4.1.

    Args:
        model: The model; it comes back untouched.
        data: The task, as in :func:`fisherscope.estimate`.
        fraction: Of the Cauchy step; 1 is the predicted minimum. Default: 0.5.
        parameters: Those that move, as in :func:`fisherscope.estimate`. Default: ``None``, all.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        seed: Keys the label draw of F. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many. Default: ``None``, all.

    Returns:
        Parameter name to displacement, fp32, on the CPU. A fraction that is not positive
        raises ``ParameterError``, a gradient that vanishes ``DataError``.
    """
    config = FisherConfig(
        parameters=parameters,
        likelihood=likelihood,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    check_number("fraction", fraction, above=0)
    return descent(prepare(model, data, config), fraction=fraction).step


@torch.inference_mode(False)
def descent(prepared: Prepared, *, rate: float | None = None, fraction: float = 0.5) -> Descent:
    """The gradient of :func:`mean_gradient` with the step of :func:`descent_step`, or a given one.

    Args:
        prepared: The checked request of the task, with the data's labels.
        rate: Step length in units of the gradient. Default: ``None``, by the curvature.
        fraction: Of the Cauchy step. Default: 0.5.

    Returns:
        Gradient and step length.

    Raises:
        DataError: If the task's gradient vanishes, so that there is no direction.
    """
    gradient = gradient_of(prepared)
    squared = _squared(gradient)
    if not squared:
        raise DataError("the gradient of the task vanishes: there is no direction of descent")
    if rate is not None:
        return Descent(gradient, rate)
    labelling = Labelling(draws=1, seed=prepared.config.seed)
    products = settled(prepared, lambda p: inner_products(p, labelling, {"g": gradient}, False))
    along = products[0, :, :, 0].sum(1)
    curvature = float((along**2).sum()) / _tokens(prepared)
    return Descent(gradient, fraction * (squared / curvature if curvature > 0 else 1.0))


@torch.inference_mode(False)
def gradient_of(prepared: Prepared) -> dict[str, Tensor]:
    """:func:`mean_gradient` of a request that has been checked.

    Args:
        prepared: The request, with the data's labels.

    Returns:
        Parameter name to gradient in nats per token.
    """
    total = _tokens(prepared)
    return {name: g / total for name, g in settled(prepared, _sum_of_gradients).items()}


def _squared(gradient: dict[str, Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in gradient.values())


def _tokens(prepared: Prepared) -> int:
    return sum(prepared.likelihood.tokens(e) for e in prepared.examples)


def _sum_of_gradients(prepared: Prepared) -> dict[str, Tensor]:
    totals = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in prepared.parameters.items()
    }

    def sink(name: str, score: Score, rows: slice, draw: int) -> None:
        del rows, draw
        score.add(totals[name])

    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        for group in batches(prepared.examples, prepared.config.batch_size):
            loss = sweep.run(group, Labelling(), sink)
            fine = all(bool(torch.isfinite(total).all()) for total in totals.values())
            sweep.check([fine] * len(group), group, loss, "the summed gradient")
    return {name: total.detach().cpu() for name, total in totals.items()}
