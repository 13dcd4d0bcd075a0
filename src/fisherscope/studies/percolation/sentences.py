"""A percolation study in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from fisherscope.studies.percolation.result import Percolation


def sentences(study: Percolation) -> list[str]:
    """What was found, the main thing first.

    Args:
        study: The study.

    Returns:
        Plain text.
    """
    return [*_attack(study), *_spared(study), *_lost(study), *study.notes]


def _attack(study: Percolation) -> list[str]:
    """Fisher order against random order, for every model and task."""
    found = []
    for key, rows in _groups(study.thresholds, ["model", "level", "on"]):
        model, level, on = key
        own = rows[(rows["by"] == on) & rows["order"].isin(["fisher", "obd"])]
        ratios = own[(own["quantity"] == "attack_ratio") & (own["outcome"] == "ok")]
        if ratios.empty:
            continue
        best = ratios.loc[ratios["value"].idxmax()]
        at = own[(own["quantity"] == "midpoint") & (own["order"] == best["order"])].iloc[0]
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
    """Which order costs least."""
    found = []
    for key, rows in _groups(study.thresholds, ["model", "level", "on"]):
        model, level, on = key
        own = rows[(rows["quantity"] == "robustness") & (rows["outcome"] == "ok")]
        own = own[(own["by"] == on) | (own["by"] == "")]
        if len(own) < 2:
            continue
        best = own.loc[own["value"].idxmax()]
        found.append(
            f"{_whose(study, model)}{on} survives the removal of {level}s longest in "
            f"{ORDER_NAMES[best['order']]} order: on average over all fractions "
            f"{percent(best['value'])} of what it knows remains "
            f"[{percent(best['low'])}, {percent(best['high'])}]."
        )
    return found


def _lost(study: Percolation) -> list[str]:
    bad = study.intact[study.intact["outcome"] == "no_better_than_uninformed"]
    return [
        f"{_whose(study, row['model'])}{row['task']} is no better than uninformed when intact "
        f"({row['loss']:.3g} against {row['uninformed']:.3g} nats per token): it has no threshold."
        for _, row in bad.iterrows()
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


def _times(row: pd.Series) -> str:
    return f"{row['value']:.3g} times [{row['low']:.3g}, {row['high']:.3g}]"


def _whose(study: Percolation, model: str) -> str:
    return "" if study.intact["model"].nunique() < 2 else f"{model}: "


def _groups(frame: pd.DataFrame, keys: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    return [] if frame.empty else list(frame.groupby(keys, sort=False))
