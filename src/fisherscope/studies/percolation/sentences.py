"""A percolation study in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fisherscope.studies.percolation.pairing import paired
from fisherscope.studies.percolation.threshold import fall

if TYPE_CHECKING:
    from fisherscope.studies.percolation.result import Percolation


def sentences(study: Percolation) -> list[str]:
    """What was found, the main thing first.

    Args:
        study: The study.

    Returns:
        Plain text.
    """
    return [
        *_compared(study), *_attack(study), *_spared(study), *_lost(study), *study.notes
    ]  # fmt: skip


def _attack(study: Percolation) -> list[str]:
    """Fisher order against random order, for every model and task."""
    found = []
    for (model, level, on), rows in _groups(study.thresholds).items():
        own = [r for r in rows if r["by"] == on and r["order"] in {"fisher", "obd"}]
        ratios = [r for r in own if r["quantity"] == "attack_ratio" and r["outcome"] == "ok"]
        if not ratios:
            continue
        best = max(ratios, key=lambda row: row["value"])
        at = next(r for r in own if r["quantity"] == "midpoint" and r["order"] == best["order"])
        resolved = best["low"] > 1
        found.append((
            -float(best["value"]) if resolved else 0.0,
            f"{_whose(study, model)}{on} is lost when {percent(at['value'])} of the {level}s go in "
            f"{ORDER_NAMES[best['order']]} order [{percent(at['low'])}, {percent(at['high'])}], "
            f"{_times(best)} earlier than in random order"
            + ("." if resolved else ": not told apart from random."),
        ))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def _spared(study: Percolation) -> list[str]:
    """Which order costs least, if it can be told."""
    found = []
    for (model, level, on), rows in _groups(study.thresholds).items():
        own = [
            r
            for r in rows
            if r["quantity"] == "robustness" and r["outcome"] == "ok" and r["by"] in {on, ""}
        ]
        if len(own) < 2:
            continue
        best, *others = sorted(own, key=lambda row: -row["value"])
        equals = [row for row in others if not _more(study, model, level, on, best, row)]
        name, remains = ORDER_NAMES[best["order"]], _interval(best)
        found.append(
            f"{_whose(study, model)}{on} survives the removal of {level}s longest in {name} order: "
            f"on average over all fractions {remains} of what it knows remains."
            if not equals
            else f"{_whose(study, model)}Which order of removing {level}s {on} survives longest is "
            f"not resolved: on average over all fractions {remains} of what it knows remains in "
            f"{name} order, {_interval(equals[0])} in {ORDER_NAMES[equals[0]['order']]} order."
        )
    return found


def _more(
    study: Percolation,
    model: str,
    level: str,
    on: str,
    best: Mapping[str, Any],
    other: Mapping[str, Any],
) -> bool:
    """Whether one order keeps more than another, in pairs."""
    task = study.tasks[model][on]
    falls = [
        fall(curve, task, study.seed)
        for row in (other, best)
        for curve in study.measured[model]
        if (curve.level, curve.order, curve.by) == (level, row["order"], row["by"])
    ]
    return paired("robustness", *falls)["verdict"] == "resolved"


def _compared(study: Percolation) -> list[str]:
    """Which of two models is the more robust, where orders are each model's own."""
    found = []
    for row in study.differences.to_dict("records"):
        if (row["quantity"], row["order"]) not in {("midpoint", "fisher"), ("midpoint", "random")}:
            continue
        head = (
            f"{row['on']}, {row['level']}s in {ORDER_NAMES[row['order']]} order: {row['model_b']}"
        )
        if row["outcome"] != "ok":
            found.append(f"{head} and {row['model_a']} can't be compared ({row['outcome']}).")
            continue
        found.append(
            f"{head} is lost at {_times(row)} the fraction of {row['model_a']}, "
            + ("resolved." if row["verdict"] == "resolved" else "not resolved.")
        )
    return found


def _lost(study: Percolation) -> list[str]:
    return [
        f"{_whose(study, row['model'])}{row['task']} is no better than uninformed when intact "
        f"({row['loss']:.3g} against {row['uninformed']:.3g} nats per token): it has no threshold."
        for row in study.intact.to_dict("records")
        if row["outcome"] == "no_better_than_uninformed"
    ]


ORDER_NAMES = {
    "fisher": "Fisher",
    "obd": "Fisher·θ²",
    "magnitude": "magnitude",
    "gradient": "gradient·θ",
    "inverse": "inverse Fisher",
    "random": "random",
}


def percent(fraction: float) -> str:
    """A fraction in words.

    Args:
        fraction: From 0 to 1; infinite where it lies beyond the curve.

    Returns:
        Text such as ``0.012%``.
    """
    if not np.isfinite(fraction):
        return "beyond" if fraction > 0 else "–"
    return f"{100 * fraction:.2g}%" if fraction < 0.995 else f"{100 * fraction:.3g}%"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]"


def _times(row: Mapping[str, Any]) -> str:
    value, low, high = (
        f"{row[key]:,.0f}" if 1000 <= row[key] < np.inf else f"{row[key]:.3g}"
        for key in ("value", "low", "high")
    )
    return f"{value} times [{low}, {high}]"


def _whose(study: Percolation, model: str) -> str:
    return "" if len(set(study.intact["model"])) < 2 else f"{model}: "


def _groups(frame: pd.DataFrame) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The rows of each model, level and watched task."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in frame.to_dict("records"):
        found.setdefault((row["model"], row["level"], row["on"]), []).append(row)
    return found
