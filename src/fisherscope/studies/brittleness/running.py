"""One run: a copy of a model learns the new task, and is looked at on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from fisherscope.analysis.concentration import concentration
from fisherscope.analysis.damage import damage_prepared
from fisherscope.data import fingerprint
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import NonFiniteError
from fisherscope.estimation import estimate
from fisherscope.preparation import VERSION
from fisherscope.studies.brittleness.request import NEW, Request
from fisherscope.studies.course import Course, follow
from fisherscope.studies.displacement import displacement
from fisherscope.studies.kept import Kept

FILE = "fine-tunings.jsonl"
_TOP = "0.01"


@dataclass(frozen=True, eq=False)
class Run:
    """One fine-tuning.

    Attributes:
        model: Which model was tuned.
        rate: Its largest learning rate.
        seed: Of the order of the batches.
        steps: After how many steps losses were measured.
        losses: Task to losses [measurements, examples] in nats, summed over tokens.
        tokens: Task to tokens of each example.
        outcome: ``"ok"`` or ``"diverged"``.
        looks: A row per look and old task: ``step``, ``task``, ``trace`` (per token),
            ``top`` (share of the trace in the top 1% of the coordinates), ``first``, ``second``,
            ``measured`` (change of loss in nats per token since the start).
    """

    model: str
    rate: float
    seed: int
    steps: np.ndarray
    losses: Mapping[str, np.ndarray]
    tokens: Mapping[str, np.ndarray]
    outcome: str
    looks: list[dict[str, Any]]

    @property
    def progress(self) -> float:
        """How far the new task's loss has fallen at the end, nats per token; NaN if diverged."""
        if self.outcome != "ok":
            return math.nan
        new = self.losses[NEW].sum(1) / self.tokens[NEW].sum()
        return float(new[0] - new[-1])


class Runner:
    """Makes runs, each once.

    Args:
        request: The checked request.
    """

    def __init__(self, request: Request):
        self.request = request
        self.kept = Kept(None if request.folder is None else request.folder / FILE)
        self.prints = {name: model_fingerprint(model) for name, model in request.models.items()}
        self.data = {task: fingerprint(rows) for task, rows in request.watch.items()}
        self.lessons = fingerprint(request.learn)
        self._known: dict[tuple[str, float, int], Run] = {}

    def attainable(self, model: str, rate: float) -> float:
        """How far the new task's loss falls with a learning rate, by the search's seed.

        Args:
            model: Which model.
            rate: The largest learning rate.

        Returns:
            Nats per token; NaN if the training diverged.
        """
        options = self.request.options
        key = ["search", *self._key(model, rate, options.seed), self.data[NEW]]
        return self.kept.once(
            key, lambda: {"fall": self._fall(model, rate)}, lambda found: float(found["fall"])
        )

    def _fall(self, model: str, rate: float) -> float:
        course = self._follow(model, rate, self.request.options.seed, watch=(NEW,))
        if course.outcome != "ok":
            return math.nan
        new = course.mean(NEW)
        return float(new[0] - new[-1])

    def run(self, model: str, rate: float, seed: int, *, look: bool) -> Run:
        """One fine-tuning with all that is measured on its way.

        Args:
            model: Which model.
            rate: The largest learning rate.
            seed: Of the order of the batches.
            look: Whether Fisher and curvature are looked at.

        Returns:
            The run; the same one if it was made before.
        """
        place = model, rate, seed
        if place not in self._known:
            options, config = self.request.options, self.request.config
            looks = options.looked_at() if look else ()
            key = [
                "run",
                *self._key(model, rate, seed),
                self.data,
                options.every,
                looks,
                config.draws,
                config.seed,
            ]
            self._known[place] = self.kept.once(
                key,
                lambda: self._run(model, rate, seed, looks),
                lambda found: _restored(model, rate, seed, found),
            )
        return self._known[place]

    def start(self, model: str) -> list[dict[str, Any]]:
        """Trace and concentration of each old task's Fisher before any step.

        Args:
            model: Which model.

        Returns:
            A row per old task, as :attr:`Run.looks` has them.
        """
        config = self.request.config
        key = ["start", VERSION, self.prints[model], self.data, config.draws, config.seed]
        return self.kept.once(
            key,
            lambda: {"looks": self._fishers(self.request.models[model], model, 0)},
            lambda found: [_numbers(row) for row in found["looks"]],
        )

    def _run(self, model: str, rate: float, seed: int, looks: tuple[int, ...]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []

        def look(copied: nn.Module, taken: int) -> None:
            if taken in looks:
                rows.extend(self._look(model, copied, taken))

        course = self._follow(model, rate, seed, watch=self.request.watch, look=look)
        for row in rows:
            change = np.diff(course.mean(row["task"])[[0, course.steps.index(row["step"])]])
            row["measured"] = float(change[0])
        return {
            "steps": list(course.steps),
            "losses": {task: rows.tolist() for task, rows in course.losses.items()},
            "tokens": {task: rows.tolist() for task, rows in course.tokens.items()},
            "outcome": course.outcome,
            "looks": rows,
        }

    def _follow(
        self, model: str, rate: float, seed: int, *, watch: Any, look: Any = None
    ) -> Course:
        request, options = self.request, self.request.options
        return follow(
            request.models[model],
            request.learn,
            {task: request.watch[task] for task in watch},
            options.schedule(rate),
            likelihood=request.likelihood,
            batch_rows=options.batch_rows,
            seed=seed,
            every=options.steps if look is None else options.every,
            on_point=look,
        )

    def _look(self, model: str, copied: nn.Module, taken: int) -> list[dict[str, Any]]:
        try:
            move = displacement(self.request.models[model], copied, name=model)
            rows = self._fishers(copied, model, taken)
            for row in rows:
                prepared = self.request.prepared[model][row["task"]]
                drawn = prepared.under(replace(self.request.config, fisher_type="mc"))
                found = damage_prepared(drawn, {NEW: move}, measure=False).table
                row["first"], row["second"] = (float(found[k].iloc[0]) for k in ("first", "second"))
        except NonFiniteError:
            # Weights on their way to a divergence, which the course itself records.
            return []
        return rows

    def _fishers(self, at: nn.Module, model: str, taken: int) -> list[dict[str, Any]]:
        config = self.request.config
        rows = []
        for task, prepared in self.request.prepared[model].items():
            fisher = estimate(
                at,
                prepared.examples,
                fisher_type="mc",
                likelihood=config.likelihood,
                draws=config.draws,
                seed=config.seed,
                progress=False,
            )
            top = concentration(fisher).top[_TOP]
            rows.append({
                "step": taken,
                "task": task,
                "trace": fisher.trace(per="token"),
                "top": top,
            })
        return rows

    def _key(self, model: str, rate: float, seed: int) -> list[Any]:
        options = self.request.options
        return [
            VERSION,
            self.prints[model],
            self.lessons,
            self.request.likelihood.name,
            rate,
            seed,
            options.steps,
            options.batch_rows,
        ]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (str, int)) else float(v) for k, v in row.items()}


def _restored(model: str, rate: float, seed: int, found: Mapping[str, Any]) -> Run:
    return Run(
        model=model,
        rate=rate,
        seed=seed,
        steps=np.array(found["steps"], int),
        losses={task: np.array(rows, dtype=float) for task, rows in found["losses"].items()},
        tokens={task: np.array(rows, dtype=float) for task, rows in found["tokens"].items()},
        outcome=found["outcome"],
        looks=[_numbers(row) for row in found["looks"]],
    )
