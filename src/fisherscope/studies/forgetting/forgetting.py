"""Forgetting: displacement, prediction, measurement, task by task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.outcomes import outcomes
from fisherscope.data import batches
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.displace import displaced
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError, TaskError
from fisherscope.preparation import Prepared, prepare
from fisherscope.structures.intervals import resamples
from fisherscope.studies.calibration import ENDS, calibrate_by_scale, points_of
from fisherscope.studies.displacement import displacement, norm
from fisherscope.studies.forgetting.result import Forgetting
from fisherscope.studies.parts import stored_fishers, summed_by_layer

TUNED = "tuned"
STRUCTURES = ("diagonal", "kfac", "ekfac")
POINTS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
_MEASURED = ("measured", "measured_low", "measured_high")


@needs_whole
@torch.inference_mode(False)
def forgetting(
    base: nn.Module,
    tuned: nn.Module,
    tasks: Mapping[str, Any],
    *,
    checkpoints: Mapping[str, nn.Module] | None = None,
    structures: Sequence[str] = STRUCTURES,
    points: Sequence[float] = POINTS,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    progress: bool = True,
) -> Forgetting:
    r"""What fine-tuning did to each task: measured, and predicted from the base model alone.

    For :math:`\delta = \theta_1 - \theta_0` the prediction is :math:`g^\top\delta + \frac12
    \delta^\top F\delta` at the base model in full (labels drawn from the model, and beside it
    the data's), and with each stored structure. It is followed along the straight line
    :math:`\theta_0 + t\delta` and at every checkpoint. The same :math:`\frac12\delta^\top
    F\delta` predicts the KL divergence from the base model. Everything is in nats per token.

    Args:
        base: The model before fine-tuning; it comes back bitwise.
        tuned: The model after, with the same parameters or with adapters.
        tasks: Task name to data, as in :func:`fisherscope.estimate`.
        checkpoints: Name to model in between, in the order of training. Default: none.
        structures: Stored Fishers, estimated here at the base model for each task with labels
            drawn from it. Default: diagonal, kfac, ekfac.
        points: Where on the straight line to look, besides its end. Default: 0.1 to 1.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Keys draws and resamples. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many of each task. Default: ``None``, all.
        progress: Show progress bars. Default: ``True``.

    Returns:
        Prediction and measurement.

    Raises:
        TaskError: If there is no task.
        ParameterError: If the models differ in architecture, a stage has the name ``"tuned"``,
            or a point is not in (0, 1].
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise TaskError("tasks is empty; give at least one name and data")
    bad = [t for t in points if not (math.isfinite(t) and 0 < t <= 1)]
    if bad:
        raise ParameterError(f"points has {bad[0]!r}; they are fractions of the path, in (0, 1]")
    if TUNED in (checkpoints or {}):
        raise ParameterError(f"a checkpoint is called {TUNED!r}, like the end; rename it")
    models = {**(checkpoints or {}), TUNED: tuned}
    moves = {name: displacement(base, model, name=name) for name, model in models.items()}
    config = FisherConfig(
        likelihood=likelihood, draws=draws, seed=seed, batch_size=batch_size,
        max_examples=max_examples,
    )  # fmt: skip
    # All tasks are checked before the first of them takes its time.
    prepared = {name: prepare(base, data, config) for name, data in tasks.items()}
    study = _Study(base, moves, structures, sorted({*points, 1.0}), config, progress)
    found = [study.task(name, item) for name, item in prepared.items()]
    stages, paths, layers, tensors, cells = zip(*found, strict=True)
    flat = [point for some in cells for point in some]
    return Forgetting(
        outcome="ok" if moves[TUNED] else "no_displacement",
        stages=pd.concat(stages, ignore_index=True),
        path=pd.concat(paths, ignore_index=True),
        layers=pd.concat(layers, ignore_index=True),
        tensors=pd.concat(tensors, ignore_index=True),
        calibration=calibrate_by_scale(flat, seed=seed),
    )


class _Study:
    def __init__(
        self,
        base: nn.Module,
        moves: Mapping[str, dict[str, Tensor]],
        structures: Sequence[str],
        points: list[float],
        config: FisherConfig,
        progress: bool,
    ):
        self.base, self.moves, self.structures = base, moves, structures
        self.points, self.config, self.progress = points, config, progress
        # A displacement of nothing is one of zeros: all that follows is then zero as well.
        still = dict(base.named_parameters())
        first = next(name for name, p in still.items() if p.is_floating_point())
        self.whole = {
            name: move or {first: torch.zeros_like(still[first])} for name, move in moves.items()
        }

    def task(self, name: str, prepared: Prepared):
        fishers = stored_fishers(
            self.base, prepared.examples, self.structures, self.config, progress=self.progress
        )
        common: dict[str, Any] = {
            "likelihood": self.config.likelihood,
            "draws": self.config.draws,
            "seed": self.config.seed,
            "batch_size": self.config.batch_size,
            "progress": self.progress,
        }
        rows = prepared.examples
        path = damage(
            self.base, rows, {TUNED: self.whole[TUNED]}, scales=self.points,
            fishers=fishers, fisher_type="mc", **common,
        )  # fmt: skip
        every = path
        if len(self.whole) > 1:
            every = damage(self.base, rows, self.whole, fishers=fishers, fisher_type="mc", **common)
        empirical = damage(
            self.base, rows, self.whole, fisher_type="empirical", measure=False, **common
        )
        stages = self._stages(name, prepared, every, empirical)
        paths = path.table.rename(columns={"scale": "t"}).drop(columns="displacement")
        paths.insert(0, "task", name)
        tensors = path.tensors.drop(columns="displacement")
        tensors.insert(0, "task", name)
        layers = summed_by_layer(tensors, ["task"])
        cells = []
        if self.moves[TUNED]:
            cells = points_of(name, path.examples, path.table, {TUNED: 1.0})
        return stages, paths, layers, tensors, cells

    def _stages(
        self, task: str, prepared: Prepared, predicted: Damage, empirical: Damage
    ) -> pd.DataFrame:
        groups = batches(prepared.examples, self.config.batch_size)
        held = dict(self.base.named_parameters())
        states = {
            stage: lambda move=move: displaced(held, move) for stage, move in self.whole.items()
        }
        seen = outcomes(self.base, prepared.likelihood, groups, states)
        before = seen.pop("")
        weights = resamples(len(before), self.config.seed)
        table = {
            row["displacement"]: row
            for row in predicted.table.to_dict("records")
            if row["scale"] == 1
        }
        data_labels = dict(
            zip(empirical.table["displacement"], empirical.table["second"], strict=True)
        )
        rows = []
        for stage, after in seen.items():
            row: dict[str, Any] = {"task": task, "stage": stage}
            tokens = before["tokens"].to_numpy(float)
            row["loss"], row["accuracy"] = (
                after[column].to_numpy().sum() / tokens.sum() for column in ("loss", "hits")
            )
            for key, values in (
                ("loss_change", after["loss"] - before["loss"]),
                ("accuracy_change", after["hits"] - before["hits"]),
                ("kl", after["kl"]),
            ):
                row[key] = values.to_numpy().sum() / tokens.sum()
                ratios = (weights @ values.to_numpy(float)) / (weights @ tokens)
                row[f"{key}_low"], row[f"{key}_high"] = np.quantile(ratios, ENDS)
            known = table[stage]
            keys = ("first", "second", "predicted", "predicted_low", "predicted_high")
            row |= {key: known[key] for key in keys}
            row |= {
                key.replace("error", "remainder"): known[key]
                for key in ("error", "error_low", "error_high")
            }
            row["empirical"] = data_labels[stage]
            row |= {structure: known[structure] for structure in self.structures}
            row["norm"] = norm(self.moves[stage])
            rows.append(row | {key: known[key] for key in ("n_examples", "n_tokens")})
        return pd.DataFrame(rows)
