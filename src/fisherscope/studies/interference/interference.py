"""Interference: the damage of every task by every task's step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.descent import descent_step
from fisherscope.data import Example, halves
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError, TaskError
from fisherscope.preparation import prepare
from fisherscope.structures.intervals import resamples
from fisherscope.studies.calibration import ENDS, Point, calibrate_by_scale, points_of
from fisherscope.studies.conflict import Conflict, conflict
from fisherscope.studies.conflict.conflict import MEMORY
from fisherscope.studies.displacement import norm
from fisherscope.studies.interference.heads import head_damage
from fisherscope.studies.interference.result import Interference
from fisherscope.studies.parts import stored_fishers, summed_by_layer

STRUCTURES = ("diagonal", "kfac", "ekfac")
SCALES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
SMALL = 0.5
BAND = (0.8, 1.25)
Steps = Mapping[str, Mapping[str, Tensor]]


@needs_whole
@torch.inference_mode(False)
def interference(
    model: nn.Module,
    tasks: Mapping[str, Any],
    *,
    steps: Steps | None = None,
    scales: Sequence[float] = SCALES,
    small: float = SMALL,
    structures: Sequence[str] = STRUCTURES,
    measure: bool = True,
    heads: bool = True,
    conflicts: bool = True,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    memory_limit: int | str = MEMORY,
    progress: bool = True,
) -> Interference:
    r"""What a step for each task does to every task, predicted and measured.

    Each task takes a step of steepest descent, made from one half of its examples and as long as
    its own curvature allows (:func:`fisherscope.descent_step` with ``fraction=1``); every task is
    watched on the other half. The damage :math:`g_A^\top\delta + \frac12\delta^\top F_A\delta` is
    predicted in full, one pass per task for all displacements, and each step is taken on several
    scales and measured. Everything is in nats per token.

    Args:
        model: The model; it comes back bitwise.
        tasks: Task name to data, as in :func:`fisherscope.estimate`; at least two.
        steps: Task name to the displacement that it would like, for example a real update.
            Default: ``None``, steepest descent.
        scales: How far to go, as multiples of each step; 1 is always among them. Default: twelve
            from 0.02 to 3.
        small: Largest scale that counts as a small step. Default: 0.5.
        structures: Stored Fishers (labels drawn from the model) whose predictions stand beside.
            Default: diagonal, kfac, ekfac.
        measure: Take the steps and measure. Default: ``True``.
        heads: Also split the damage by attention head, where the model has a configuration that
            tells them; one more pass per task for each kind of labels. Default: ``True``.
        conflicts: Also find out which gradients conflict, by layer and by example, see
            :func:`fisherscope.studies.conflict.conflict`. Default: ``True``.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Keys draws and resamples. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many of each task. Default: ``None``, all.
        memory_limit: Of the per-example gradients that conflicts need, in bytes or as text;
            beyond it they are sketched. Default: 2 GiB.
        progress: Show progress bars. Default: ``True``.

    Returns:
        The damage matrix with all its parts.

    Raises:
        TaskError: If there are fewer than two tasks, or one has too few examples.
        ParameterError: If ``scales`` has no positive number, or ``steps`` names other tasks.
    """
    if not isinstance(tasks, Mapping) or len(tasks) < 2:
        raise TaskError(
            "interference is between tasks: give at least two, as name to data; for a single one "
            "use fs.damage"
        )
    if not len(scales) or not all(math.isfinite(s) and s > 0 for s in scales):
        raise ParameterError(f"scales={scales!r} must be positive finite numbers")
    if not (math.isfinite(small) and small > 0):
        raise ParameterError(f"small={small!r} must be positive and finite")
    if steps is not None and set(steps) != set(tasks):
        raise ParameterError(
            f"steps is for {sorted(steps)} but the tasks are {sorted(tasks)}; give one step for "
            "each task"
        )
    config = FisherConfig(
        likelihood=likelihood, draws=draws, seed=seed, batch_size=batch_size,
        max_examples=max_examples,
    )  # fmt: skip
    study = _Study(model, config, structures, sorted({*scales, 1.0}), progress)
    # All tasks are checked before the first of them takes its time.
    split = {name: study.split(name, data) for name, data in tasks.items()}
    taken = steps or {name: study.step(moving) for name, (moving, _) in split.items()}
    found = {
        name: study.watch(watched, taken, measure=measure) for name, (_, watched) in split.items()
    }
    lengths = {name: norm(step) for name, step in taken.items()}
    tensors = _labelled({name: found[name].tensors for name in found})
    table = study.calibrated(found, small) if measure else pd.DataFrame()
    return Interference(
        unit_scale=1.0,
        cells=_cells(found, lengths),
        layers=summed_by_layer(tensors, ["on", "by"]),
        tensors=tensors,
        heads=study.heads(split, taken) if heads else pd.DataFrame(),
        asymmetry=_asymmetry(found, seed),
        calibration=table,
        small=small,
        reliable=_reliable(table),
        conflict=study.conflict(split, memory_limit) if conflicts else None,
    )


class _Study:
    def __init__(
        self,
        model: nn.Module,
        config: FisherConfig,
        structures: Sequence[str],
        scales: list[float],
        progress: bool,
    ):
        self.model, self.config, self.structures = model, config, structures
        self.scales, self.progress = scales, progress
        self.common: dict[str, Any] = {
            "likelihood": config.likelihood,
            "seed": config.seed,
            "batch_size": config.batch_size,
        }

    def split(self, name: str, data: Any) -> tuple[list[Example], list[Example]]:
        rows = prepare(self.model, data, self.config).examples
        if len(rows) < 4:
            raise TaskError(
                f"task {name!r} has {len(rows)} examples; one half makes the step and the other "
                "is watched, so give at least four"
            )
        return halves(rows)

    def step(self, moving: list[Example]) -> dict[str, Tensor]:
        return descent_step(self.model, moving, fraction=1.0, **self.common)

    def watch(self, watched: list[Example], steps: Steps, *, measure: bool) -> Damage:
        return damage(
            self.model,
            watched,
            steps,
            scales=self.scales,
            fishers=stored_fishers(
                self.model, watched, self.structures, self.config, progress=self.progress
            ),
            draws=self.config.draws,
            measure=measure,
            progress=self.progress,
            **self.common,
        )

    def heads(
        self, split: Mapping[str, tuple[list[Example], list[Example]]], steps: Steps
    ) -> pd.DataFrame:
        if getattr(self.model, "config", None) is None:
            return pd.DataFrame()
        frames = {}
        try:
            for name, (_, watched) in split.items():
                frames[name] = head_damage(prepare(self.model, watched, self.config), steps)
        except ParameterError:
            return pd.DataFrame()  # no attention whose heads are known
        return _labelled(frames)

    def calibrated(self, found: Mapping[str, Damage], small: float) -> pd.DataFrame:
        points: list[Point] = []
        for name, item in found.items():
            names = dict.fromkeys(item.table["displacement"], 1.0)
            points += points_of(name, item.examples, item.table, names)
        return calibrate_by_scale(points, small=small, seed=self.config.seed)

    def conflict(
        self,
        split: Mapping[str, tuple[list[Example], list[Example]]],
        memory_limit: int | str,
    ) -> Conflict:
        watched = {name: rows for name, (_, rows) in split.items()}
        return conflict(
            self.model, watched, memory_limit=memory_limit, progress=self.progress, **self.common
        )


def _labelled(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for name, frame in frames.items():
        part = frame.rename(columns={"displacement": "by"})
        part.insert(0, "on", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _cells(found: Mapping[str, Damage], lengths: Mapping[str, float]) -> pd.DataFrame:
    cells = _labelled({name: item.table for name, item in found.items()})
    norms = [lengths[by] * t for by, t in zip(cells["by"], cells["scale"], strict=True)]
    return cells.assign(step_norm=norms)


def _asymmetry(found: Mapping[str, Damage], seed: int) -> pd.DataFrame:
    rows = []
    for a, b in itertools.combinations(found, 2):
        row: dict[str, Any] = {"a": a, "b": b}
        for key, columns in (("antisymmetric", ["first", "second"]), ("measured", ["measured"])):
            draws = [
                _resampled(found[on], by, columns, [seed, n])
                for n, (on, by) in enumerate(((a, b), (b, a)))
            ]
            half = 0.5 * (draws[0] - draws[1])
            low, high = np.quantile(half[1:], ENDS)
            prefix = "" if key == "antisymmetric" else "measured_"
            row |= {key: half[0], f"{prefix}low": low, f"{prefix}high": high}
        row["outcome"] = "ok" if row["low"] * row["high"] > 0 else "not_resolved"
        rows.append(row)
    return pd.DataFrame(rows)


def _resampled(item: Damage, by: str, columns: list[str], seed: list[int]) -> np.ndarray:
    """A damage per token, the estimate first and then over resampled examples."""
    rows = [
        row
        for row in item.examples.to_dict("records")
        if row["displacement"] == by and row["scale"] == 1.0
    ]
    values = np.array([sum(row[column] for column in columns) for row in rows])
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    n = len(rows)
    weights = resamples(n, seed, itself=True)
    return (weights @ values) / (weights @ tokens)


def _reliable(table: pd.DataFrame) -> float:
    reached = 0.0
    full = [
        row
        for row in table.to_dict("records")
        if row["method"] == "full" and not math.isnan(row["scale"])
    ]
    for row in sorted(full, key=lambda row: row["scale"]):
        if not BAND[0] <= row["slope"] <= BAND[1]:
            break
        reached = row["scale"]
    return reached
