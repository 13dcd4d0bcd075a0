"""The page of a study: what stands around its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def context(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs beside the figures.

    Args:
        results: The content of a study's ``results.json``, cleaned.

    Returns:
        Template variables.
    """
    findings = [str(line) for line in results.get("findings") or []]
    models = results.get("models") or {}
    return {
        "kind": str(results.get("kind")),
        "title": str(results.get("title") or results.get("kind")),
        "names": list(models),
        "finding": findings[0] if findings else "The study found nothing to report.",
        "lead": " ".join(findings[1:3]),
        "findings": findings,
        "tiles": [],
        "alerts": None,
        "models": [{"name": name, **(model or {})} for name, model in models.items()],
        "tasks": [
            {"name": name, **(task or {})} for name, task in (results.get("tasks") or {}).items()
        ],
        "notes": [str(line) for line in results.get("notes") or []],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The findings for a terminal.

    Args:
        results: The content of a study's ``results.json``, cleaned.

    Returns:
        One finding a line.
    """
    return "\n".join(f"- {line}" for line in results.get("findings") or [])
