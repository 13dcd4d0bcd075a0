"""Results to one HTML file that needs nothing else, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fisherscope.errors import StoreError
from fisherscope.metrics.run_folder import write_bytes
from fisherscope.report import comparison, study, text
from fisherscope.report.alerts import alerts, headline, tiles
from fisherscope.report.comparison import is_comparison
from fisherscope.report.figures import COMPARISON, REGISTRY, STUDIES, FigureSpec
from fisherscope.report.figures.palette import css_variables
from fisherscope.report.summary import markdown
from fisherscope.report.tables import (
    asymmetry_table,
    coverage_table,
    tasks_table,
    uncertainty_table,
)

FORMAT = 1
SECTIONS = (
    "tasks",
    *(spec.id for spec in REGISTRY),
    "methods",
    "coverage",
    "settings",
    "provenance",
)


def render(results: Mapping[str, Any]) -> str:
    """Draw a report.

    Args:
        results: The content of a run's ``results.json``, of one model, of the comparison of
            several, or of a study. Missing sections and values are shown as missing; text in it
            is escaped.

    Returns:
        A whole HTML page: no network, no external file, the same for the same results. A
        dictionary that is no results file of this format is a :class:`StoreError`.
    """
    content = _checked(results)
    registry, name, own = _page(content)
    shared = {
        "settings": content.get("settings") or {},
        "run": content.get("run") or {},
        "version": content.get("version"),
        "created": content.get("created"),
        "figures": [_figure(spec, content) for spec in registry],
        "colors": css_variables(),
    }
    return _environment().get_template(name).render(**shared, **own)


def _page(content: Mapping[str, Any]) -> tuple[tuple[FigureSpec, ...], str, dict[str, Any]]:
    """Figures, template, and what that needs beside them."""
    kind = content.get("kind")
    if kind in STUDIES:
        return STUDIES[kind], "study.html.j2", study.context(content)
    if is_comparison(content):
        return COMPARISON, "comparison.html.j2", comparison.context(content)
    return REGISTRY, "model.html.j2", _model(content)


def _model(content: Mapping[str, Any]) -> dict[str, Any]:
    first, rest = headline(content)
    return {
        "model": content.get("model") or {},
        "n_tasks": len(content["tasks"]),
        "finding": first,
        "lead": rest,
        "tiles": tiles(content),
        "alerts": alerts(content, SECTIONS),
        "tasks": tasks_table(content),
        "coverage": coverage_table(content),
        "asymmetry": asymmetry_table(content),
        "uncertainty": uncertainty_table(content),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fisherscope.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=text.count,
        duration=text.duration,
        plural=text.plural,
        sha256=_sha256,
        size=text.size,
    )
    return environment


def summary(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table with standard errors, for a terminal.

    Args:
        results: The content of a run's ``results.json``.

    Returns:
        The table, the main finding and the alerts.
    """
    content = _checked(results)
    if content.get("kind") in STUDIES:
        return study.markdown(content)
    return comparison.markdown(content) if is_comparison(content) else markdown(content)


def write_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw a report and put it in place at once, so that no reader ever sees half of it.

    Args:
        results: The content of a run's ``results.json``.
        path: The HTML file; its folder is made where it is missing.

    Returns:
        The path written. A failed write is a :class:`StoreError` and leaves what was there.
    """
    target = Path(path)
    page = render(results).encode("utf-8")
    write_bytes(target, page)
    return target


def _figure(spec: FigureSpec, results: Mapping[str, Any]) -> dict[str, Any]:
    data = spec.build(results)
    shown: dict[str, Any] = {"id": spec.id, "title": spec.title, "absent": spec.absent(results)}
    if data is None:
        return {**shown, "caption": ""}
    return {
        **shown,
        "caption": data.caption(),
        "reading": data.reading(),
        "table": data.table(),
        "views": data.views(),
    }


def _checked(results: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(results, Mapping) or results.get("format") != FORMAT:
        found = results.get("format") if isinstance(results, Mapping) else type(results).__name__
        raise StoreError(
            f"results have format {found!r}, this version draws format {FORMAT}; "
            "run `fisherscope analyze` again or use the version that wrote them"
        )
    content = text.clean(dict(results))
    if is_comparison(content) or content.get("kind") in STUDIES:
        return content
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "name" in t for t in tasks):
        raise StoreError(
            "results['tasks'] is not a list of tasks with names; the file is not a whole "
            "results.json, run `fisherscope analyze` again"
        )
    return content


def _sha256(script: Markup) -> str:
    # The page's security policy admits the script with this hash and no other.
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
