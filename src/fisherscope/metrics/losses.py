"""The loss of each task before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fisherscope.data import batches
from fisherscope.engine.losses import example_losses
from fisherscope.preparation import Prepared


@dataclass(frozen=True, eq=False)
class TaskLoss:
    """Losses of a task, example by example.

    Attributes:
        ids: Ids of the examples.
        sums: float64 ``[n]``, each example's loss in nats, summed over its tokens.
        tokens: int64 ``[n]``, its number of supervised tokens.
    """

    ids: tuple[str, ...]
    sums: np.ndarray
    tokens: np.ndarray

    @property
    def value(self) -> float:
        """Mean loss in nats per token."""
        return float(self.sums.sum() / self.tokens.sum())

    @property
    def se(self) -> float:
        """Standard error over examples, which differ in length; NaN for a single one."""
        n = len(self.ids)
        if n < 2:
            return float("nan")
        residuals = self.sums - self.value * self.tokens
        spread = np.sqrt(n / (n - 1) * np.square(residuals).sum())
        return float(spread / self.tokens.sum())

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Mean loss of resampled examples.

        Args:
            weights: ``[resamples, n]``, how often each example was drawn.

        Returns:
            float64 ``[resamples]``, nats per token.
        """
        return (weights @ self.sums) / (weights @ self.tokens)


def task_loss(prepared: Prepared) -> TaskLoss:
    """Mean negative log-probability of the labels, in one forward pass over the data.

    Args:
        prepared: The checked request of the task, with the data's labels.

    Returns:
        The losses.
    """
    likelihood, rows = prepared.likelihood, prepared.examples
    groups = batches(rows, prepared.config.batch_size)
    losses = example_losses(prepared.model, likelihood, prepared.coverage, groups)
    return TaskLoss(
        ids=tuple(example.id for example in rows),
        sums=np.array([losses[example.id] for example in rows]),
        tokens=np.array([likelihood.tokens(example) for example in rows]),
    )
