"""Figures that a study shares with other pages, read from where a study keeps its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fisherscope.report.figures import conflict, conflicting, damage
from fisherscope.report.figures.base import FigureSpec

Read = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _reading(spec: FigureSpec, read: Read) -> FigureSpec:
    return replace(spec, build=lambda results: spec.build(read(results)))


def _damage(results: Mapping[str, Any]) -> dict[str, Any]:
    study = results.get("study") or {}
    cells = [
        {**row, "diagonal": _alone(row), "n": row.get("n_examples")}
        for row in study.get("cells") or []
        if row.get("scale") == study.get("unit_scale")
    ]
    tasks = [{"name": name} for name in results.get("tasks") or {}]
    return {"tasks": tasks, "damage": {"cells": cells}}


def _alone(row: Mapping[str, Any]) -> float | None:
    # The stored Fisher's second order alone, as the page of one model has it.
    if row.get("diagonal") is None or row.get("first") is None:
        return None
    return row["diagonal"] - row["first"]


def _conflict(results: Mapping[str, Any]) -> dict[str, Any]:
    found = (results.get("study") or {}).get("conflict") or {}
    tasks = [{"name": name} for name in results.get("tasks") or {}]
    return {"tasks": tasks, "conflict": found}


DAMAGE = _reading(damage.FIGURE, _damage)
CONFLICT = _reading(conflict.FIGURE, _conflict)
CONFLICTING = _reading(conflicting.FIGURE, _conflict)
