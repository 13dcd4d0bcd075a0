"""What a brittleness study is asked for, checked before any long work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fisherscope.arguments import check_number, check_whole
from fisherscope.data import Example, content_id, examples, halves
from fisherscope.defaults import FisherConfig
from fisherscope.errors import DataError, ParameterError, TaskError
from fisherscope.likelihoods import Likelihood
from fisherscope.preparation import Prepared, prepare
from fisherscope.studies.displacement import check_alike
from fisherscope.studies.tuning import Schedule

NEW, ALL = "new", "all"
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (1, 2, 3, 4, 5)
# With two, intervals over seeds would cover less than they say.
LEAST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class BrittlenessOptions:
    """How a brittleness study is made; the defaults of :func:`brittleness`, explained there.

    Attributes:
        rates: Learning rates that the search begins with.
        share: How much of the attainable progress the matched runs make.
        steps: Optimiser steps of every run.
        batch_rows: Examples per batch.
        every: Steps between measurements.
        seeds: Of the runs.
        looks: How often after the start Fisher and curvature are looked at.
        collapse: Share of the way to the uninformed loss at which a task counts as collapsed.
        seed: Of the search, of label draws and of resamples.
    """

    rates: tuple[float, ...] = RATES
    share: float = 0.8
    steps: int = 40
    batch_rows: int = 8
    every: int = 2
    seeds: tuple[int, ...] = SEEDS
    looks: int = 2
    collapse: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or len(set(self.rates)) != len(self.rates):
            raise ParameterError(f"rates={list(self.rates)}: give one or more different rates")
        for rate in self.rates:
            check_number("rates", rate, above=0)
        check_number("share", self.share, above=0, most=1)
        check_number("collapse", self.collapse, above=0, most=1)
        for name, low in (("steps", 1), ("batch_rows", 1), ("every", 1), ("looks", 0)):
            check_whole(name, getattr(self, name), low=low)
        check_whole("seed", self.seed, low=0)
        for seed in self.seeds:
            check_whole("seeds", seed, low=0)
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < LEAST_SEEDS:
            raise ParameterError(
                f"seeds={list(self.seeds)}: give {LEAST_SEEDS} or more different seeds; the "
                "interval is over them"
            )
        if self.seed in self.seeds:
            raise ParameterError(
                f"seed={self.seed} is among seeds={list(self.seeds)}; the search for the rates "
                "takes a seed of its own, or rates would fit that run best"
            )

    def schedule(self, rate: float) -> Schedule:
        """Steps and rates of a run.

        Args:
            rate: Its largest learning rate.

        Returns:
            The schedule.
        """
        return Schedule(steps=self.steps, peak=rate)

    def looked_at(self) -> tuple[int, ...]:
        """After how many steps Fisher and curvature are looked at, besides the start.

        Returns:
            Measured steps, evenly over the run, the last step among them.
        """
        measured = [n for n in range(1, self.steps + 1) if not n % self.every or n == self.steps]
        wanted = [self.steps * (i + 1) / self.looks for i in range(self.looks)]
        return tuple(dict.fromkeys(min(measured, key=lambda n: abs(n - w)) for w in wanted))


@dataclass(frozen=True, eq=False)
class Request:
    """A checked request.

    Attributes:
        models: Name to model; the first is the one that others are compared with.
        learn: Training examples of the new task.
        watch: Task to the examples that its loss is measured on; the new task is ``NEW``.
        prepared: Model to old task to its checked request.
        likelihood: That of all models.
        uninformed: Old task to the loss of a model that ignores its input, nats per token.
        config: Settings of the Fisher.
        options: How the study is made.
        folder: Folder of finished runs, or ``None``.
    """

    models: dict[str, nn.Module]
    learn: list[Example]
    watch: dict[str, list[Example]]
    prepared: dict[str, dict[str, Prepared]]
    likelihood: Likelihood
    uninformed: dict[str, float]
    config: FisherConfig
    options: BrittlenessOptions
    folder: Path | None

    @property
    def reference(self) -> str:
        """The model that others are compared with."""
        return next(iter(self.models))

    @property
    def old(self) -> list[str]:
        """The old tasks."""
        return [task for task in self.watch if task != NEW]


def make_request(
    models: Mapping[str, nn.Module],
    learn: Any,
    tasks: Mapping[str, Any],
    held_out: Any,
    config: FisherConfig,
    options: BrittlenessOptions,
    folder: str | Path | None,
) -> Request:
    """Check what :func:`brittleness` was given.

    Args:
        models: Name to model.
        learn: Training examples of the new task.
        tasks: Old task to data.
        held_out: Examples of the new task to measure it on, or ``None``.
        config: Likelihood, draws, seed, and how many examples of each task to watch.
        options: How the study is made.
        folder: Folder of finished runs, or ``None``.

    Returns:
        The checked request.

    Raises:
        ParameterError: If there are fewer than two models, or two differ in architecture.
        TaskError: If there is no task, or one has a name that is taken.
        DataError: If the new task's rows can't be told from the held-out ones.
    """
    if not isinstance(models, Mapping) or len(models) < 2:
        raise ParameterError(
            "models must be a mapping from name to model with at least two of them"
        )
    names = list(models)
    for name in names[1:]:
        check_alike(
            *(dict(models[n].named_parameters()) for n in (names[0], name)), names=(names[0], name)
        )
    if not isinstance(tasks, Mapping) or not tasks:
        raise TaskError("tasks is empty; give at least one old task, by name, that may be damaged")
    if taken := [name for name in tasks if name in {NEW, ALL}]:
        raise TaskError(f"task {taken[0]!r}: this name stands for something else; rename the task")
    first = models[names[0]]
    whole = replace(config, max_examples=None)
    # Held-out rows need no labels of their own kind: what is prepared is what is trained on.
    trained = _prepared("learn", first, learn, whole).examples
    if held_out is None:
        if len(trained) < 2:
            raise DataError(
                "learn has one example and there is no held_out=; give rows of the new task to "
                "measure it on"
            )
        trained, kept = halves(trained)
    else:
        kept = examples(held_out)
    new = _prepared("held_out", first, kept, config)
    known = {content_id(e) for e in trained}
    shared = [e.id for e in new.examples if content_id(e) in known]
    if shared:
        raise DataError(
            f"held_out shares {len(shared)} of its {len(new.examples)} examples with learn "
            f"(the first is {shared[0]!r}); its loss would be that of what was learnt by heart. "
            "Leave them out, or give no held_out= to have learn split"
        )
    rows = {task: _prepared(task, first, data, config).examples for task, data in tasks.items()}
    prepared = {
        name: {task: _prepared(task, model, rows[task], config) for task in rows}
        for name, model in models.items()
    }
    return Request(
        models=dict(models),
        learn=trained,
        watch={NEW: new.examples, **rows},
        prepared=prepared,
        likelihood=new.likelihood,
        uninformed={task: _uninformed(p) for task, p in prepared[names[0]].items()},
        config=config,
        options=options,
        folder=None if folder is None else Path(os.path.expanduser(folder)).absolute(),
    )


def _prepared(what: str, model: nn.Module, data: Any, config: FisherConfig) -> Prepared:
    # An error about an example says nothing about the argument that it came from.
    try:
        return prepare(model, data, config)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _uninformed(prepared: Prepared) -> float:
    """Loss of a model that ignores its input: uniform, or the best constant of a regression."""
    labels = [e.labels for e in prepared.examples if e.labels is not None]
    if not labels[0].is_floating_point():
        return math.log(prepared.coverage.width)
    y = torch.stack([value.double().reshape(-1) for value in labels])
    spread = float((y - y.mean(0)).square().sum(-1).mean())
    return 0.5 * spread + 0.5 * y.shape[-1] * math.log(2 * math.pi)
