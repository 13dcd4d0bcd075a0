"""The step that one task would like to take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import inner_products
from fisherscope.data import batches
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.errors import DataError, ParameterError
from fisherscope.naming import Selection
from fisherscope.preparation import Prepared, prepare, settled


@torch.inference_mode(False)
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
        Parameter name to displacement, fp32, on the CPU.

    Raises:
        ParameterError: If ``fraction`` is not positive.
        DataError: If the task's gradient vanishes, so that there is no direction.
    """
    if not fraction > 0:
        raise ParameterError(f"fraction={fraction!r} must be positive; 1 is the whole Cauchy step")
    config = FisherConfig(
        parameters=parameters,
        likelihood=likelihood,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    prepared = prepare(model, data, config)
    total = sum(prepared.likelihood.tokens(e) for e in prepared.examples)
    gradient = {name: g / total for name, g in settled(prepared, _sum_of_gradients).items()}
    squared = sum(float(g.double().square().sum()) for g in gradient.values())
    if not squared:
        raise DataError("the gradient of the task vanishes: there is no direction of descent")
    labelling = Labelling(draws=1, seed=seed)
    products = settled(prepared, lambda p: inner_products(p, labelling, {"g": gradient}, False))
    along = products[0, :, :, 0].sum(1)
    curvature = float((along**2).sum()) / total
    step = squared / curvature if curvature > 0 else 1.0
    return {name: -fraction * step * g for name, g in gradient.items()}


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
            sweep.run(group, Labelling(), sink)
    return {name: total.detach().cpu() for name, total in totals.items()}
