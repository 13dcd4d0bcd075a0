"""What would have helped: the same fine-tuning with each remedy, and with each remedy's null."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import NonFiniteError
from fisherscope.structures import Fisher
from fisherscope.studies.course import Course, follow
from fisherscope.studies.kept import Kept
from fisherscope.studies.remedies import placement
from fisherscope.studies.remedies.arms import (
    LABELS,
    LORA,
    NULLS,
    PLAIN,
    REMEDIES,
    STRENGTHS,
    Strengths,
)
from fisherscope.studies.remedies.comparing import Gain, compare, gain_of
from fisherscope.studies.remedies.interventions import Interventions
from fisherscope.studies.remedies.result import Remedies
from fisherscope.studies.remedies.setting import Setting, settle
from fisherscope.studies.seeds import over_seeds
from fisherscope.studies.tuning import Schedule

FILE = "fine-tunings.jsonl"
SEEDS = (0, 1, 2, 3, 4)
LEVELS = (0.5, 0.75, 0.9)
BATCH_ROWS, EVERY, FISHER_ROWS = 8, 5, 256
Key = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class _Run:
    course: Course
    n_trainable: int
    nbytes: int
    modules: tuple[str, ...]


@needs_whole
@torch.inference_mode(False)
def remedies(
    model: nn.Module,
    learn: Any,
    tasks: Mapping[str, Any],
    *,
    schedule: Schedule,
    held_out: Any = None,
    protect: Mapping[str, Any] | None = None,
    fishers: Mapping[str, Fisher] | None = None,
    name: str = "new",
    arms: Sequence[str] = REMEDIES,
    seeds: Sequence[int] = SEEDS,
    levels: Sequence[float] = LEVELS,
    batch_rows: int = BATCH_ROWS,
    every: int = EVERY,
    strength: float = STRENGTHS.strength,
    freeze_share: float = STRENGTHS.freeze_share,
    mask_share: float = STRENGTHS.mask_share,
    scope: str = STRENGTHS.scope,
    lora_share: float = STRENGTHS.lora_share,
    lora_rank: int = STRENGTHS.lora_rank,
    lora_rate: float = STRENGTHS.lora_rate,
    fisher_rows: int = FISHER_ROWS,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Remedies:
    r"""Fine-tune with each remedy and each remedy's null, and compare old tasks at equal new loss.

    All arms start at the same weights and see the same batches in the same order, seed by seed:

    ========== ================================================= ==========================
    arm        what is different                                 its null
    ========== ================================================= ==========================
    plain      nothing
    ewc        penalty :math:`\frac\lambda2 \sum_k \delta^\top   L2 of the same trace
               F_k \delta` with the old tasks' diagonal Fishers
    freeze     the coordinates with the largest old Fisher do    as many random ones in
               not move                                          every tensor
    mask       only coordinates move where the new task's        a random mask of the same
               Fisher is large beside the old tasks'             size in every tensor
    lora       adapters on the linear layers in which the new    as many random layers, of
               task's step costs the old tasks least per nat     nearly as many parameters,
               that it gains                                     others with every seed
    ========== ================================================= ==========================

    A level is a share of what plain fine-tuning gains at its best on the new task's held-out rows
    in the same seed. Old tasks are compared where an arm's loss of the new task first falls to it
    (straight between two measurements). Fishers (labels drawn from the model, per token) and
    predictions are made from other rows than those that losses are measured on. A fine-tuning that
    diverges is recorded, and the study goes on.

    Args:
        model: The model to start from; it comes back untouched.
        learn: The new task's training examples, as in :func:`fisherscope.estimate`.
        tasks: Old task's name to examples.
        schedule: Steps and rates of every fine-tuning.
        held_out: Examples of the new task to measure it on. Default: ``None``, half of ``learn``,
            split by content; then only the other half is trained on.
        protect: Old task's name to examples that Fishers and predictions are made from.
            Default: ``None``, half of ``tasks``, split by content; then the other half is measured.
        fishers: Old task's name to diagonal Fisher at these weights, of rows that are not
            measured. Default: ``None``, estimated.
        name: What the new task is called. Default: ``"new"``.
        arms: Remedies to try, each with its null: ``"ewc"``, ``"freeze"``, ``"mask"``,
            ``"lora"``. LoRA needs ``peft``; without it the arm is skipped and says so. Default:
            all.
        seeds: Of the fine-tunings. Default: 0 to 4.
        levels: Shares above 0 and at most 1. Default: 0.5, 0.75 and 0.9.
        batch_rows: Examples per training batch. Default: 8.
        every: Steps between measurements. Default: 5.
        strength: Of both penalties, :math:`\lambda` of :class:`fisherscope.EWC`. Default: 10.
        freeze_share: Share of coordinates that are frozen. Default: 0.1.
        mask_share: Share of coordinates that may move. Default: 0.1.
        scope: Whether shares are of the whole model (``"global"``) or of each tensor
            (``"tensor"``). Default: ``"global"``.
        lora_share: Share of linear layers that get an adapter. Default: 0.25.
        lora_rank: Rank of the adapters. Default: 8.
        lora_rate: What the learning rate is multiplied by for adapters. Default: 10.
        fisher_rows: Most examples of a task that Fishers and predictions are made from, chosen by
            content. Default: 256.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Keys the draws. Default: 0.
        batch_size: Examples per pass of an estimate. Default: ``None``, packs to 4096 tokens.
        folder: Where finished fine-tunings are kept, so that the same call goes on from there.
            Default: ``None``, nowhere.
        progress: Show progress bars. Default: ``True``.

    Returns:
        Old losses at equal new loss, with differences to plain fine-tuning and to each null.

    Raises:
        NonFiniteError: If a loss is not finite before any training. What is wrong with an
            argument is told before that: ``TaskError`` without old tasks, ``DataError`` for rows
            that can't be used, ``ParameterError`` for an unknown arm or a share out of range,
            ``IdentityError`` for a Fisher of another model.

    Source:
        Kirkpatrick et al. (2017) for EWC; Sung, Nair, Raffel (2021) for masks by the new task's
        Fisher, Tan et al. (2026) for masks by Fisher against forgetting; Hu et al. (2022) for LoRA.
    """  # noqa: DOC502 (raised while it runs)
    setting = settle(
        model,
        learn,
        tasks,
        held_out=held_out,
        protect=protect,
        fishers=fishers,
        name=name,
        arms=arms,
        strengths=Strengths(
            strength=strength,
            freeze_share=freeze_share,
            mask_share=mask_share,
            scope=scope,
            lora_share=lora_share,
            lora_rank=lora_rank,
            lora_rate=lora_rate,
        ),
        schedule=schedule,
        seeds=seeds,
        batch_rows=batch_rows,
        every=every,
        levels=levels,
        fisher_rows=fisher_rows,
        config=FisherConfig(
            fisher_type="mc",
            unit="token",
            likelihood=likelihood,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
        ),
    )
    return _Study(setting, None if folder is None else Path(folder), progress).run()


class _Study:
    def __init__(self, setting: Setting, folder: Path | None, progress: bool):
        self.setting, self.progress = setting, progress
        self.interventions = Interventions(setting, progress=progress)
        self.kept = Kept(None if folder is None else folder / FILE, setting.identity)
        self.runs: dict[Key, _Run] = {}
        reason = placement.unavailable(setting.model) if LORA in setting.arms else None
        self.skipped = {} if reason is None else {LORA: reason, NULLS[LORA]: reason}

    def run(self) -> Remedies:
        setting = self.setting
        self._all([PLAIN])
        gains = {s: gain_of(self.runs[PLAIN, s].course, setting.name) for s in setting.seeds}
        resolved = {s: gain for s, gain in gains.items() if gain.resolved}
        wanted = [arm for remedy in setting.arms for arm in (remedy, NULLS[remedy])]
        if resolved:
            self._all([arm for arm in wanted if arm not in self.skipped])
        courses = {key: run.course for key, run in self.runs.items()}
        table = pd.DataFrame()
        if resolved:
            table = compare(
                courses, resolved, new=setting.name, old=setting.old, levels=setting.levels
            )
        return Remedies(
            outcome="ok" if resolved else "no_progress",
            name=setting.name,
            tasks=setting.old,
            levels=setting.levels,
            table=table,
            arms=self._arms([PLAIN, *wanted]),
            runs=self._runs(),
            curves=_curves(courses),
            progress=_progress(gains),
            modules=self._modules(),
            settings=self._settings(),
        )

    def _all(self, arms: Sequence[str]) -> None:
        # Seed by seed, so that an interrupted study has whole pairs.
        keys = [(arm, seed) for seed in self.setting.seeds for arm in arms]
        bar = tqdm(keys, desc="fine-tunings", unit="run", disable=not self.progress)
        for arm, seed in bar:
            bar.set_postfix(arm=arm, seed=seed, refresh=False)
            made = self.kept.once(
                [arm, seed], lambda a=arm, s=seed: _written(self._one(a, s)), _read
            )
            self.runs[arm, seed] = made

    def _one(self, arm: str, seed: int) -> _Run:
        setting = self.setting
        made = self.interventions.make(arm, seed)
        course = follow(
            made.model,
            setting.learn.examples,
            setting.watch,
            made.schedule,
            likelihood=setting.learn.likelihood,
            batch_rows=setting.batch_rows,
            seed=seed,
            every=setting.every,
            penalty=made.penalty,
            trainable=made.trainable,
        )
        if not course.steps:
            raise NonFiniteError(
                f"a loss of {', '.join(map(repr, setting.watch))} is not finite before any "
                "training; look at the model and at the rows"
            )
        return _Run(course, made.n_trainable, made.nbytes, made.modules)

    def _arms(self, arms: Sequence[str]) -> pd.DataFrame:
        rows = []
        for arm in arms:
            own = [run for (name, _), run in self.runs.items() if name == arm]
            well = [run.course for run in own if run.course.outcome == "ok"]
            final = over_seeds([c.mean(self.setting.name)[-1] for c in well])
            rows.append({
                "arm": arm,
                "label": LABELS[arm],
                "null": NULLS.get(arm, ""),
                "trainable": float(np.mean([run.n_trainable for run in own])) if own else math.nan,
                "bytes": float(np.mean([run.nbytes for run in own])) if own else math.nan,
                **final.named("final_new"),
                "diverged": len(own) - len(well),
                "n_seeds": len(own),
                "skipped": self.skipped.get(arm, ""),
            })
        return pd.DataFrame(rows)

    def _runs(self) -> pd.DataFrame:
        new, old = self.setting.name, self.setting.old
        return pd.DataFrame([
            {
                "arm": arm,
                "seed": seed,
                "outcome": run.course.outcome,
                "steps": run.course.steps[-1],
                "final_new": float(run.course.mean(new)[-1]),
                "final_old": float(np.mean([run.course.mean(task)[-1] for task in old])),
                "trainable": run.n_trainable,
                "bytes": run.nbytes,
                "modules": ", ".join(run.modules),
            }
            for (arm, seed), run in self.runs.items()
        ])

    def _modules(self) -> pd.DataFrame:
        if not any(arm == LORA for arm, _ in self.runs):
            return pd.DataFrame()
        chosen = set(self.interventions.chosen)
        ranking = self.interventions.ranking
        return ranking.assign(chosen=[module in chosen for module in ranking["module"]])

    def _settings(self) -> dict[str, Any]:
        s = self.setting
        return {
            **dataclasses.asdict(s.strengths),
            "schedule": dataclasses.asdict(s.schedule),
            "seeds": s.seeds,
            "batch_rows": s.batch_rows,
            "every": s.every,
            "fisher_rows": s.fisher_rows,
            "draws": s.config.draws,
            "seed": s.config.seed,
            "learn_examples": len(s.learn.examples),
            "measured_examples": {task: len(rows) for task, rows in s.watch.items()},
            "fisher_examples": {
                **{task: len(rows) for task, rows in s.protect.items()},
                s.name: len(s.learn_sample),
            },
            "fishers": "given" if s.given is not None else "estimated",
        }


def _curves(courses: Mapping[Key, Course]) -> pd.DataFrame:
    parts = []
    for (arm, seed), course in courses.items():
        frame = course.to_frame()
        frame.insert(0, "arm", arm)
        frame.insert(1, "seed", seed)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _progress(gains: Mapping[int, Gain]) -> pd.DataFrame:
    return pd.DataFrame([
        {
            "seed": seed,
            "start": gain.start,
            "best": gain.best,
            "gain": gain.start - gain.best,
            "gain_low": gain.low,
            "outcome": "ok" if gain.resolved else "no_progress",
        }
        for seed, gain in gains.items()
    ])


def _written(run: _Run) -> dict[str, Any]:
    course = run.course
    return {
        "trainable": run.n_trainable,
        "bytes": run.nbytes,
        "modules": run.modules,
        "steps": course.steps,
        "losses": {task: losses.tolist() for task, losses in course.losses.items()},
        "tokens": {task: tokens.tolist() for task, tokens in course.tokens.items()},
        "training": course.training,
        "outcome": course.outcome,
    }


def _read(row: Mapping[str, Any]) -> _Run:
    course = Course(
        steps=tuple(row["steps"]),
        losses={task: np.array(losses, float) for task, losses in row["losses"].items()},
        tokens={task: np.array(tokens, int) for task, tokens in row["tokens"].items()},
        training=tuple(row["training"]),
        outcome=row["outcome"],
    )
    return _Run(course, row["trainable"], row["bytes"], tuple(row["modules"]))
