"""How losses of several tasks go while a copy of a model learns one of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.outcomes import outcomes
from fisherscope.data import Example, batches
from fisherscope.likelihoods import Likelihood
from fisherscope.results import Result
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches

Penalty = Callable[[nn.Module], Callable[[], object]]
OnPoint = Callable[[nn.Module, int], None]
Outcome = Literal["ok", "diverged"]


@dataclass(frozen=True, eq=False)
class Course(Result):
    """Losses of watched examples, step by step.

    Attributes:
        steps: After how many optimiser steps each measurement was taken, 0 first.
        losses: Task to losses in nats, summed over an example's tokens [measurements, examples].
        tokens: Task to supervised tokens of each example.
        training: The loss of each step on its batch, nats per token.
        outcome: ``"diverged"`` if a training loss or a watched loss was not finite; the
            measurements end before that.
    """

    steps: tuple[int, ...]
    losses: Mapping[str, np.ndarray]
    tokens: Mapping[str, np.ndarray]
    training: tuple[float, ...]
    outcome: Outcome

    def mean(self, task: str, counts: np.ndarray | None = None) -> np.ndarray:
        """Loss per token at each measurement.

        Args:
            task: One of those that were watched.
            counts: How often each example counts, as a bootstrap draws them. Default: once.

        Returns:
            Nats per token [measurements].
        """
        counts = np.ones(len(self.tokens[task])) if counts is None else counts
        return self.losses[task] @ counts / (self.tokens[task] @ counts)

    def to_frame(self) -> pd.DataFrame:
        """Every measurement.

        Returns:
            A row per step and task: ``step``, ``task``, ``loss`` (nats per token).
        """
        return pd.DataFrame([
            {"step": step, "task": task, "loss": loss}
            for task in self.losses
            for step, loss in zip(self.steps, self.mean(task).tolist(), strict=True)
        ])


def follow(
    model: nn.Module,
    learn: Sequence[Example],
    watch: Mapping[str, Sequence[Example]],
    schedule: Schedule,
    *,
    likelihood: Likelihood,
    batch_rows: int,
    seed: int,
    every: int = 1,
    penalty: Penalty | None = None,
    trainable: Mapping[str, Tensor] | None = None,
    on_point: OnPoint | None = None,
    progress: bool = False,
) -> Course:
    """Fine-tune a copy of a model and measure all watched tasks on the way.

    Args:
        model: Where to start; it comes back untouched.
        learn: The new task's training examples, with labels.
        watch: Task to the labelled examples that its loss is measured on.
        schedule: Steps and rates.
        likelihood: The model's likelihood.
        batch_rows: Examples per batch.
        seed: Of the order of the batches, and of dropout.
        every: Steps between measurements; before the first and after the last step there is
            one in any case. Default: 1.
        penalty: From the copy to what :func:`fine_tune` calls after each backward pass. Default:
            none.
        trainable: As in :func:`fine_tune`. Default: everything may move.
        on_point: Called with the copy and the steps taken at every measurement; it must leave
            the copy as it is. Default: nothing.
        progress: Whether to show a bar. Default: ``False``.

    Returns:
        The losses, up to where they were finite.
    """
    copied = copy.deepcopy(model)
    groups = {task: list(batches(rows)) for task, rows in watch.items()}
    steps: list[int] = []
    losses: dict[str, list[np.ndarray]] = {task: [] for task in watch}
    tokens: dict[str, np.ndarray] = {}

    def measure(taken: int) -> bool:
        found = {t: outcomes(copied, likelihood, group)[""] for t, group in groups.items()}
        if not all(np.isfinite(frame["loss"].to_numpy()).all() for frame in found.values()):
            return False
        steps.append(taken)
        for task, frame in found.items():
            losses[task].append(frame["loss"].to_numpy())
            tokens[task] = frame["tokens"].to_numpy()
        if on_point is not None:
            on_point(copied, taken)
        return True

    finite = measure(0)

    def on_step(step: int, loss: float) -> bool:
        nonlocal finite
        taken = step + 1
        if taken % every == 0 or taken == schedule.steps:
            with torch.random.fork_rng():
                finite = measure(taken)
        return not finite

    training: tuple[float, ...] = ()
    if finite:
        training = fine_tune(
            copied,
            row_batches(learn, batch_rows),
            schedule,
            likelihood=likelihood,
            seed=seed,
            penalty=None if penalty is None else penalty(copied),
            trainable=trainable,
            on_step=on_step,
            progress=progress,
        )
    well = finite and all(map(math.isfinite, training))
    return Course(
        steps=tuple(steps),
        losses={task: np.stack(rows) for task, rows in losses.items() if rows},
        tokens=tokens,
        training=training,
        outcome="ok" if well else "diverged",
    )


def at_level(new: np.ndarray, old: np.ndarray, level: float) -> float:
    """An old task's loss where the new one's first falls to a level.

    Args:
        new: The new task's loss at each measurement.
        old: The old task's, at the same measurements.
        level: Loss of the new task.

    Returns:
        The old loss, between two measurements on the straight line; NaN if the level is never
        reached.
    """
    if new[0] <= level:
        return float(old[0])
    for i in range(1, len(new)):
        if new[i] <= level:
            share = (new[i - 1] - level) / (new[i - 1] - new[i])
            return float(old[i - 1] + share * (old[i] - old[i - 1]))
    return math.nan
