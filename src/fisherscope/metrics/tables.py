"""The results as tables, one row per number with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd


def tables_of(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Turn the content of ``results.json`` into tables.

    Args:
        results: What a run found.

    Returns:
        Table name to frame; columns of rows that belong to one task begin with ``task``.
    """
    tasks = pd.DataFrame(results["tasks"])
    if len(tasks):
        tasks["skipped"] = [len(skipped) for skipped in tasks["skipped"]]
    curves = {
        name: {key: curve[key] for key in ("fraction", "mass", "low", "high")}
        for name, curve in results["concentration"].items()
    }
    return {
        "tasks": tasks,
        "importance": _by_task({n: pd.DataFrame(r) for n, r in results["importance"].items()}),
        "concentration": _by_task({n: pd.DataFrame(c) for n, c in curves.items()}),
        "similarity": pd.DataFrame(results["similarity"]),
        "overlap": pd.DataFrame(results["overlap"]),
        "damage": pd.DataFrame(results["damage"]["cells"]),
        "alerts": pd.DataFrame(results["alerts"]),
        **{name: pd.DataFrame(results[name]) for name in ("top", "asymmetry", "uncertainty")},
    }


def comparison_tables(results: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Turn the comparison of several models into tables.

    Args:
        results: The content of its ``results.json``.

    Returns:
        Table name to frame.
    """
    names = ("table", "tensors", "modules", "similarity")
    tasks = {name: pd.DataFrame(rows) for name, rows in results["tasks"].items()}
    for frame in tasks.values():
        frame["skipped"] = [len(skipped) for skipped in frame["skipped"]]
    return {
        "tasks": pd.concat(tasks, names=["model"]).reset_index("model").reset_index(drop=True),
        **{name: pd.DataFrame(results[name]) for name in names},
    }


def _by_task(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    labelled = []
    for name, frame in frames.items():
        frame.insert(0, "task", name)
        labelled.append(frame)
    return pd.concat(labelled, ignore_index=True) if labelled else pd.DataFrame()
