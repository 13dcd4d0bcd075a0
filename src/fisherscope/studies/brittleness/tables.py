"""Runs to tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fisherscope.studies.brittleness.collapse import collapse
from fisherscope.studies.brittleness.geometry import geometry
from fisherscope.studies.brittleness.paths import Paths, interval, resampled
from fisherscope.studies.brittleness.rates import Rates
from fisherscope.studies.brittleness.ratios import no_ratio, ratios
from fisherscope.studies.brittleness.request import ALL, LEAST_SEEDS, NEW, Request
from fisherscope.studies.brittleness.result import Brittleness
from fisherscope.studies.brittleness.running import Run

MATCHED, SAME_RATE = "matched", "same_rate"
Runs = dict[tuple[str, str], list[Run]]


def assemble(
    request: Request, found: Rates, runs: Runs, start: Mapping[str, list[dict[str, Any]]]
) -> Brittleness:
    """Everything that the runs say.

    Args:
        request: The checked request.
        found: The matched rates.
        runs: Model and arm to its runs, one per seed; none if some model makes no progress.
        start: Model to trace and concentration before any step; empty without looks.

    Returns:
        The result.
    """
    matched = {model: own for (model, arm), own in runs.items() if arm == MATCHED}
    compared = _ratios(request, runs) if runs else []
    through = [row for row in compared if row["criterion"] == "progress"]
    if found.stuck:
        outcome = "no_progress"
    else:
        outcome = "diverged" if {r["outcome"] for r in through} == {"diverged"} else "ok"
    return Brittleness(
        outcome=outcome,
        reference=request.reference,
        goal=found.goal,
        stuck=found.stuck,
        ratios=pd.DataFrame(compared),
        curves=pd.DataFrame(_curves(request, runs)),
        collapse=pd.DataFrame(_collapses(request, runs)),
        geometry=geometry(start, matched) if start else pd.DataFrame(),
        rates=found.table,
        runs=pd.DataFrame([
            row for (_, arm), own in runs.items() for run in own for row in _rows(run, arm)
        ]),
        training=pd.DataFrame([
            {
                "model": run.model,
                "arm": arm,
                "seed": run.seed,
                "rate": run.rate,
                "progress": run.progress,
                "outcome": run.outcome,
            }
            for (_, arm), own in runs.items()
            for run in own
        ]),
    )


def _ratios(request: Request, runs: Runs) -> list[dict[str, Any]]:
    rows = []
    reference, old = request.reference, request.old
    sizes = {task: len(request.watch[task]) for task in old}
    for model in request.models:
        if model == reference:
            continue
        for criterion in ("progress", "level", "same_rate"):
            arm = SAME_RATE if criterion == "same_rate" else MATCHED
            pairs = [
                (a, b)
                for a, b in zip(runs[reference, arm], runs[model, arm], strict=True)
                if a.outcome == b.outcome == "ok"
            ]
            if len(pairs) >= LEAST_SEEDS:
                first, second = (
                    resampled(side, request.options.seed) for side in zip(*pairs, strict=True)
                )
                found = ratios(first, second, old, criterion)
            else:
                found = [{"task": task, **no_ratio("diverged")} for task in (ALL, *old)]
            counts = {"n_seeds": len(pairs), "n_diverged": len(runs[model, arm]) - len(pairs)}
            for row in found:
                n = sizes.get(row["task"], sum(sizes.values()))
                place = {"model": model, "reference": reference, "criterion": criterion}
                rows.append({**place, **row, "n_examples": n, **counts})
    return rows


def _through(own: Sequence[Run], seed: int) -> Paths | None:
    fine = [run for run in own if run.outcome == "ok"]
    return resampled(fine, seed) if len(fine) >= LEAST_SEEDS else None


def _curves(request: Request, runs: Runs) -> list[dict[str, Any]]:
    rows = []
    for (model, arm), own in runs.items():
        paths = _through(own, request.options.seed)
        if paths is None:
            continue
        damages = {task: paths.damage(task) for task in request.old}
        damages[ALL] = np.mean(list(damages.values()), axis=0)
        for task, damage in damages.items():
            for point, step in enumerate(paths.steps.tolist()):
                row: dict[str, Any] = {"model": model, "arm": arm, "task": task, "step": step}
                for name, draws in (("progress", paths.progress), ("damage", damage)):
                    value, low, high = interval(draws[:, point])
                    row |= {name: value, f"{name}_low": low, f"{name}_high": high}
                loss = math.nan if task == ALL else float(paths.losses[task][0, point])
                rows.append({**row, "new_loss": float(paths.losses[NEW][0, point]), "loss": loss})
    return rows


def _collapses(request: Request, runs: Runs) -> list[dict[str, Any]]:
    options = request.options
    rows = []
    for (model, arm), own in runs.items():
        paths = _through(own, options.seed)
        for task in request.old:
            row = collapse(paths, own, task, request.uninformed[task], options.collapse)
            rows.append({"model": model, "arm": arm, "task": task, **row})
    return rows


def _rows(run: Run, arm: str) -> list[dict[str, Any]]:
    """Losses of one run, nats per token."""
    return [
        {"model": run.model, "arm": arm, "seed": run.seed, "task": task, "step": step, "loss": loss}
        for task, losses in run.losses.items()
        for step, loss in zip(
            run.steps.tolist(), (losses.sum(1) / run.tokens[task].sum()).tolist(), strict=True
        )
    ]
