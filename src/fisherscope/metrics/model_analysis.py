"""Everything that is said about one model: from its tasks' Fishers to results."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from fisherscope.analysis import Damage
from fisherscope.data import Example
from fisherscope.defaults import FisherConfig
from fisherscope.metrics.alerts import alerts
from fisherscope.metrics.damage_matrix import damage_matrix
from fisherscope.metrics.estimating import Estimated
from fisherscope.metrics.findings import (
    concentration_of,
    coverage_of,
    importance_rows,
    overlap_rows,
    similarity_rows,
    task_row,
)
from fisherscope.metrics.losses import TaskLoss, task_loss
from fisherscope.metrics.run_config import DamageConfig, settings_of
from fisherscope.preparation import prepare
from fisherscope.results import Result, plain
from fisherscope.structures import Fisher

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ModelAnalysis(Result):
    """What was found about one model.

    Attributes:
        results: The numbers as plain values, the content of a run's ``results.json``.
        fishers: Task name to Fisher.
        losses: Task name to its losses before anything is changed.
        damages: Task name to what a step for each task does to it; empty where damage was
            not asked for.
    """

    results: dict[str, Any]
    fishers: dict[str, Fisher]
    losses: dict[str, TaskLoss]
    damages: dict[str, Damage]

    def to_frame(self) -> pd.DataFrame:
        """One row per task.

        Returns:
            The tasks with loss, trace, concentration and split-half agreement.
        """
        return pd.DataFrame(self.results["tasks"])

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values.

        Returns:
            ``results``.
        """
        return self.results


def analyze_model(
    model: nn.Module,
    tasks: Mapping[str, list[Example]],
    estimated: Mapping[str, Estimated],
    config: FisherConfig,
    *,
    source: str,
    sparsity: float,
    damage: DamageConfig,
    settings: Mapping[str, Any] | None = None,
    answers: Mapping[str, Any] | None = None,
    progress: bool = True,
    say: Say = lambda _: None,
) -> ModelAnalysis:
    """Every result about one model, under the same examples and seed.

    Args:
        model: The model; it comes back untouched.
        tasks: Task name to examples.
        estimated: Task name to Fisher.
        config: How the Fishers were estimated.
        source: Where the model came from, for the record.
        sparsity: Share of weights pruned in the masks whose overlap is shown.
        damage: How the damage matrix is made.
        settings: Further settings for the record. Default: none.
        answers: Further entries of the results. Default: none.
        progress: Whether progress bars are shown. Default: ``True``.
        say: Called with a line of text at the beginning of each step. Default: nothing.

    Returns:
        The analysis.
    """
    fishers = {name: item.fisher for name, item in estimated.items()}
    say("Losses, importance and concentration")
    own = FisherConfig(
        parameters=config.parameters,
        likelihood=config.likelihood,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    # Rules are verified once for all that is asked about a task.
    prepared = {
        name: prepare(model, used(tasks[name], fisher), own) for name, fisher in fishers.items()
    }
    losses = {name: task_loss(task) for name, task in prepared.items()}
    curves, rows = {}, []
    for name, item in estimated.items():
        curves[name], participation = concentration_of(item.fisher)
        rows.append(task_row(name, item, losses[name], participation, curves[name]["top"]["0.01"]))
    if len(fishers) > 1:
        say("Similarity and overlap of tasks")
    pairs = similarity_rows(fishers, seed=config.seed)
    overlaps, no_overlap = overlap_rows(fishers, sparsity)
    cells, damages = damage_matrix(prepared, fishers, damage, progress=progress, say=say)
    first = next(iter(fishers.values()))
    now = datetime.datetime.now(datetime.UTC)
    results = plain({
        "format": 1,
        "version": first.identity.version,
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "model": {
            "source": source,
            "class": type(model).__name__,
            "likelihood": first.identity.likelihood,
            "n_parameters": first.n_parameters,
            "n_tensors": len(first.identity.parameters),
            "dtype": first.identity.dtype,
            "fingerprint": first.identity.model_fingerprint,
            "coverage": coverage_of(first),
        },
        "settings": {**settings_of(config), **(settings or {}), "sparsity": sparsity},
        "tasks": rows,
        "importance": {name: importance_rows(fisher) for name, fisher in fishers.items()},
        "concentration": curves,
        "similarity": pairs,
        "overlap": overlaps,
        "overlap_absent": no_overlap,
        "damage": cells,
        **(answers or {}),
    })
    results["alerts"] = alerts(results)
    return ModelAnalysis(results=results, fishers=fishers, losses=losses, damages=damages)


def used(examples: list[Example], fisher: Fisher) -> list[Example]:
    """The examples that an estimate did not skip, which would make other numbers NaN.

    Args:
        examples: A task's examples.
        fisher: Its Fisher.

    Returns:
        Those whose scores were finite.
    """
    skipped = set(fisher.skipped)
    return [example for example in examples if example.id not in skipped]
