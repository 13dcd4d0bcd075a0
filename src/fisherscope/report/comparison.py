"""The page that sets several models side by side: what stands around its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fisherscope.report import text
from fisherscope.report.alerts import alerts
from fisherscope.report.tables import Column, Table

_REPORT = "report.html"


def is_comparison(results: Mapping[str, Any]) -> bool:
    """Whether results are those of several models.

    Args:
        results: The content of a ``results.json``.

    Returns:
        False for those of a single model.
    """
    return results.get("kind") == "comparison"


def context(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs beside the figures.

    Args:
        results: The content of a comparison's ``results.json``, cleaned.

    Returns:
        Template variables.
    """
    findings = [str(line) for line in results.get("findings") or []]
    models = results.get("models") or {}
    return {
        "names": list(models),
        "reference": results["reference"],
        "finding": findings[0] if findings else f"{text.plural(len(models), 'model')} compared.",
        "lead": " ".join(findings[1:3]),
        "findings": findings,
        "tiles": [],
        "alerts": alerts(results, ()),
        "models": [
            {"name": name, "link": f"{quote(name)}/{_REPORT}", **(model or {})}
            for name, model in models.items()
        ],
        "unlike": [str(name) for name in results.get("unlike") or []],
        "tasks": _tasks(results),
        "similarity": _similarity(results),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The comparison for a terminal.

    Args:
        results: The content of a comparison's ``results.json``, cleaned.

    Returns:
        One finding a line, resolved ones first.
    """
    lines = [f"- {line}" for line in results.get("findings") or []]
    return "\n".join([f"Against {results['reference']}:", "", *lines])


def _tasks(results: Mapping[str, Any]) -> Table:
    columns = (
        Column("model", "Model", "text"),
        Column("name", "Task", "text"),
        Column("n_examples", "Examples", "integer"),
        Column("loss", "Loss", "number", "Nats per token"),
        Column("loss_se", "±", "number", "Standard error of the loss"),
        Column("trace", "Trace", "number", "Sum of the Fisher diagonal, mean per unit"),
        Column("trace_se", "±", "number", "Standard error of the trace over examples"),
        Column("participation", "Participation", "integer", "(Σf)²/Σf², in parameters"),
        Column("top1_mass", "Top 1%", "percent", "Share of the trace in the top 1% of parameters"),
        Column("split_half_spearman", "Split-half ρ", "number", "Rank agreement of two halves"),
    )
    rows = [
        {"model": model, **row}
        for model, tasks in (results.get("tasks") or {}).items()
        for row in tasks
    ]
    rows.sort(key=lambda row: str(row.get("name")))
    return Table(columns, tuple(rows), "Tasks under each model")


def _similarity(results: Mapping[str, Any]) -> Table:
    columns = (
        Column("task", "Task", "text"),
        Column("model", "Model", "text"),
        Column("metric", "Metric", "text"),
        Column("value", "Value", "number", "On all examples"),
        Column("halves", "Halves", "number", "A half under one model, a half under the other"),
        Column("ceiling", "Ceiling", "number", "Two halves under the same model"),
        Column("floor", "Floor", "number", "Parameters permuted within each tensor"),
    )
    rows = tuple(results.get("similarity") or ())
    return Table(columns, rows, "Similarity of each model's Fisher to the reference's")
