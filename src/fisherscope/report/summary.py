"""The report in a terminal: a Markdown table of values with their standard errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fisherscope.report import text
from fisherscope.report.alerts import alerts, headline
from fisherscope.report.figures import damage, similarity

Row = tuple[str, str, str, str, str]
_METRICS = (
    ("loss", "loss_se", "loss"),
    ("trace", "trace_se", "trace"),
    ("mean_fisher", None, "mean Fisher"),
    ("top1_mass", None, "top 1% mass"),
    ("participation", None, "participation"),
    ("split_half_spearman", None, "split-half ρ"),
)
_MOST_PAIRS = 20


def markdown(results: Mapping[str, Any]) -> str:
    """A table of tasks, pairs and damage, then the finding and the alerts.

    Args:
        results: A results dictionary, already cleaned.

    Returns:
        Markdown that also reads well as plain text.
    """
    header: Row = ("Task", "n", "Metric", "Value", "±")
    rows = [header, *_task_rows(results), *_pair_rows(results), *_damage_rows(results)]
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    widths = [max(text.width(row[i]) for row in cells) for i in range(len(header))]
    numeric = {1, 3, 4}
    lines = [
        "|" + "|".join(_pad(cell, widths[i], i in numeric) for i, cell in enumerate(row)) + "|"
        for row in cells
    ]
    rule = "|" + "|".join(
        "-" * (w - 1) + ":" if i in numeric else "-" * w for i, w in enumerate(widths)
    )
    lines.insert(1, rule + "|")
    first, rest = headline(results)
    said = f"{first} {rest}".strip()
    found = [f"- {a.level.upper()} {a.rule}: {a.message}" for a in alerts(results, ())]
    return "\n".join([*lines, "", said, *([""] if found else []), *found])


def _pad(cell: str, columns: int, right: bool) -> str:
    space = " " * (columns - text.width(cell))
    return space + cell if right else cell + space


def _task_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    for task in results["tasks"]:
        name, n = task["name"], text.number(task.get("n_examples"))
        shown = text.MISSING if n is None else f"{n:,.0f}"
        for key, error_key, label in _METRICS:
            value = text.number(task.get(key))
            error = text.number(task.get(error_key)) if error_key else None
            if value is not None:
                yield name, shown, label, text.significant(value), text.significant(error, 2)
                name = shown = ""


def _pair_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    data = similarity.build(results)
    ranked = data.ranked() if data else []
    for pair in ranked[:_MOST_PAIRS]:
        n = [v for v in (pair.n_a, pair.n_b) if v is not None]
        around = [
            f"{name} {text.significant(value, 2)}"
            for name, value in (("floor", pair.floor), ("ceiling", pair.ceiling))
            if value is not None
        ]
        metric = data.metric if data else ""
        yield (
            pair.name,
            f"{min(n):,.0f}" if n else text.MISSING,
            f"{metric} ({', '.join(around)})" if around else metric,
            text.significant(pair.value),
            text.MISSING,
        )


def _damage_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    data = damage.build(results)
    cells = [cell for cell in data.cells if cell.on != cell.by] if data else []
    cells.sort(key=lambda c: -(c.measured if c.measured is not None else c.predicted or 0.0))
    for cell in cells[:_MOST_PAIRS]:
        name = f"{cell.on} ← {cell.by}"
        n = text.MISSING if cell.n is None else f"{cell.n:,.0f}"
        for kind in ("predicted", "measured"):
            value, low, high = cell.value(kind)
            if value is not None:
                error = text.significant(text.error_of(low, high), 2)
                yield name, n, f"damage, {kind}", text.significant(value), error
                name = n = ""
