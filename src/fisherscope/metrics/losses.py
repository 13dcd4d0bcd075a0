"""The loss of each task before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from fisherscope.data import Example, batches
from fisherscope.defaults import FisherConfig
from fisherscope.engine.losses import example_losses
from fisherscope.preparation import prepare


@dataclass(frozen=True)
class TaskLoss:
    """Mean loss of a task.

    Attributes:
        value: Nats per token.
        se: Standard error over examples (of the ratio, since examples differ in length);
            NaN for a single example.
    """

    value: float
    se: float


def task_loss(model: nn.Module, examples: Sequence[Example], config: FisherConfig) -> TaskLoss:
    """Mean negative log-probability of the labels, in one forward pass over the data.

    Args:
        model: The model; it comes back untouched.
        examples: The task.
        config: Its likelihood and batch size are used.

    Returns:
        The loss with its standard error.
    """
    settings = FisherConfig(likelihood=config.likelihood, batch_size=config.batch_size)
    prepared = prepare(model, list(examples), settings)
    likelihood, rows = prepared.likelihood, prepared.examples
    losses = example_losses(model, likelihood, prepared.coverage, batches(rows, config.batch_size))
    sums = np.array([losses[example.id] for example in rows])
    counts = np.array([likelihood.tokens(example) for example in rows])
    value = float(sums.sum() / counts.sum())
    n = len(rows)
    if n < 2:
        return TaskLoss(value, float("nan"))
    residuals = sums - value * counts
    return TaskLoss(value, float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / counts.sum()))
