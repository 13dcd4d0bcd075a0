"""What a step that helps one task costs every other: predicted, and measured beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fisherscope.analysis.damage import Damage, damage_prepared
from fisherscope.analysis.descent import descent
from fisherscope.arguments import check_number
from fisherscope.data import halves
from fisherscope.metrics.run_config import DamageConfig
from fisherscope.preparation import Prepared
from fisherscope.structures import Fisher

Cells = list[dict[str, Any]]
_STORED = "stored"
_SAME = (
    "first",
    "second",
    "predicted",
    "predicted_low",
    "predicted_high",
    "measured",
    "measured_low",
    "measured_high",
    "unit",
)


def damage_matrix(
    tasks: Mapping[str, Prepared],
    fishers: Mapping[str, Fisher],
    config: DamageConfig,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, Damage]]:
    """Predict and measure the damage of one step per task on every task.

    The step of a task is made from one half of its examples and its effect is looked at on
    the other half, so that the cell of a task with itself is not flattered.

    Args:
        tasks: Task name to its checked request, with the data's labels; the model comes back as
            it was.
        fishers: Task name to stored Fisher, whose own prediction is shown beside.
        config: How the matrix is made.
        progress: Whether progress bars are shown.
        say: Called with a line of text at the beginning of each step.

    Returns:
        The ``damage`` entry of ``results.json``, and for each task what every step does to it.
    """
    if not config.enabled:
        return {"definition": "Not computed: damage.enabled is false.", "cells": []}, {}
    check_number("damage.fraction", config.fraction, above=0)
    say("A step for each task")
    split = {name: _split(one, config.max_examples) for name, one in tasks.items()}
    steps = {
        name: descent(moving, fraction=config.fraction).step for name, (moving, _) in split.items()
    }
    norms = {name: _norm(step) for name, step in steps.items()}
    cells: Cells = []
    damages: dict[str, Damage] = {}
    for on, (_, watched) in split.items():
        say(f"Damage to {on}: predicted, then measured")
        damages[on] = damage_prepared(
            watched.under(replace(watched.config, fisher_type="mc")),
            steps,
            fishers={_STORED: fishers[on]},
            measure=config.measure,
            progress=progress,
        )
        cells += _cells(on, damages[on], norms)
    return {"definition": _definition(config), "cells": cells}, damages


def _split(task: Prepared, most: int | None) -> tuple[Prepared, Prepared]:
    # First those that the step is made from, then those that it is looked at on.
    if len(task.examples) < 2:
        return task, task
    moving, watched = (replace(task, examples=half[:most]) for half in halves(task.examples))
    return moving, watched


def _cells(on: str, found: Damage, norms: Mapping[str, float]) -> Cells:
    return [
        {
            "on": on,
            "by": row["displacement"],
            "step_norm": norms[row["displacement"]],
            **{key: row[key] for key in _SAME},
            # damage() adds the first order to what the stored Fisher says; here it stands alone.
            "diagonal": row[_STORED] - row["first"],
            "n": row["n_examples"],
        }
        for row in found.to_frame().to_dict(orient="records")
    ]


def _norm(step: Mapping[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in step.values()))


def _definition(config: DamageConfig) -> str:
    measured = "; measured: the weights are moved, evaluated and moved back" * config.measure
    return (
        f"Each task in turn takes {config.fraction:g} of the step of steepest descent that "
        "its own quadratic picture likes best, made from one half of its examples. Shown is the "
        "change of each task's loss on the other half of its examples. Predicted: the gradient "
        "along the step plus half the full quadratic form of the true Fisher, labels drawn from "
        f"the model{measured}. Intervals: 95%, bootstrap over examples."
    )
