"""What a step that helps one task costs every other: predicted, and measured beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.descent import descent_step
from fisherscope.data import Example, halves
from fisherscope.defaults import FisherConfig
from fisherscope.metrics.run_config import DamageConfig
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
    model: nn.Module,
    tasks: Mapping[str, list[Example]],
    fishers: Mapping[str, Fisher],
    config: DamageConfig,
    fisher: FisherConfig,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, Damage]]:
    """Predict and measure the damage of one step per task on every task.

    The step of a task is made from one half of its examples and its effect is looked at on
    the other half, so that the cell of a task with itself is not flattered.

    Args:
        model: The model, which comes back as it was.
        tasks: Task name to examples.
        fishers: Task name to stored Fisher, whose own prediction is shown beside.
        config: How the matrix is made.
        fisher: Likelihood, batch size, seed and parameters.
        progress: Whether progress bars are shown.
        say: Called with a line of text at the beginning of each step.

    Returns:
        The ``damage`` entry of ``results.json``, and for each task what every step does to it.
    """
    if not config.enabled:
        return {"definition": "Not computed: damage.enabled is false.", "cells": []}, {}
    say("A step for each task")
    split = {name: _split(examples, config.max_examples) for name, examples in tasks.items()}
    options = {
        "likelihood": fisher.likelihood,
        "batch_size": fisher.batch_size,
        "seed": fisher.seed,
    }
    steps = {
        name: descent_step(
            model,
            moving,
            fraction=config.fraction,
            parameters=fisher.parameters,
            **options,
        )
        for name, (moving, _) in split.items()
    }
    norms = {name: _norm(step) for name, step in steps.items()}
    cells: Cells = []
    damages: dict[str, Damage] = {}
    for on, (_, watched) in split.items():
        say(f"Damage to {on}: predicted, then measured")
        damages[on] = damage(
            model,
            watched,
            steps,
            fishers={_STORED: fishers[on]},
            measure=config.measure,
            progress=progress,
            **options,
        )
        cells += _cells(on, damages[on], norms)
    return {"definition": _definition(config), "cells": cells}, damages


def _split(examples: list[Example], most: int | None) -> tuple[list[Example], list[Example]]:
    # First those that the step is made from, then those that it is looked at on.
    if len(examples) < 2:
        return examples, examples
    moving, watched = halves(examples)
    return (moving, watched) if most is None else (moving[:most], watched[:most])


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
