"""The tables of Kronecker factors in ``README.md``, from the raw figures in ``results/``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from table import WRONG, Figures, machine, markdown, megabytes

MARKERS = ("<!-- factors: begin -->", "<!-- factors: end -->")
LIBRARIES = {"ours": "ours", "kronfluence": "kronfluence", "curvlinops": "curvlinops"}
STAGES = {
    "covariances": "covariances",
    "eigenvectors": "eigenvectors",
    "eigenvalues": "EKFAC eigenvalues",
    "step": "all three",
}
PRODUCTS = {
    "ours": "product, ours",
    "curvlinops": "product, curvlinops (GGN of the squared loss)",
    "curvlinops-ef": "product, curvlinops (EF)",
}
TARGETS = {"covariances": 1.20, "eigenvalues": 1.60, "product": 2.20}


def load(folder: Path, shapes: list[str]) -> list[Figures]:
    """The raw figures of every measured shape, in the order of the shapes."""
    paths = [folder / f"factors-{name.replace('+', '-')}.json" for name in shapes]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _rows() -> list[tuple[str, str]]:
    """Label and key of every row."""
    rows = [(f"{s}, {lib}", f"{lib}/{stage}") for stage, s in STAGES.items() for lib in LIBRARIES]
    return rows + [(label, f"{name}/product") for name, label in PRODUCTS.items()]


def _wrong(figures: Figures) -> bool:
    return "error" in figures and not figures["error"] <= WRONG


def _time(shape: Figures, key: str) -> str:
    figures = shape["stages"].get(key, {})
    if "failure" in figures:
        return "fails"
    if _wrong(figures):
        return "another quantity"
    if "ratio" not in figures:
        return "–"
    return f"{figures['ratio']:.2f} ({figures['ratio_q1']:.2f}–{figures['ratio_q3']:.2f})"


def _error(shape: Figures, key: str) -> str:
    figures = shape["stages"].get(key, {})
    if "error" not in figures:
        return "–"
    return f"**{figures['error']:.0e}**" if _wrong(figures) else f"{figures['error']:.0e}"


def _peak(shape: Figures, key: str) -> str:
    figures = shape["stages"].get(key, {})
    text = megabytes(shape["peak_bytes"].get(key))
    return text + (f" @{figures['chunk']}" if "chunk" in figures and text != "–" else "")


def _grid(found: list[Figures], cell: Callable[[Figures, str], str], skip: str = "") -> str:
    rows = [
        [label, *(cell(shape, key) for shape in found)]
        for label, key in _rows()
        if not skip or not key.endswith(skip)
    ]
    return markdown(["", *(shape["shape"] for shape in found)], rows)


def _targets(found: list[Figures]) -> str:
    lines = []
    for stage, limit in TARGETS.items():
        label = STAGES.get(stage, "one Fisher–vector product")
        for shape in found:
            ratio = shape["stages"].get(f"ours/{stage}", {}).get("ratio")
            if ratio is not None:
                met = "yes" if ratio <= limit else "**no**"
                lines.append([f"{label}, {shape['shape']}", f"≤ {limit:.2f}", f"{ratio:.3f}", met])
    for shape in found:
        mine = shape["stages"].get("ours/step", {}).get("ratio")
        for rival in ("kronfluence", "curvlinops"):
            theirs = shape["stages"].get(f"{rival}/step", {}).get("ratio")
            if mine is not None and theirs is not None:
                met = "yes" if mine < theirs else "**no**"
                what = f"the whole step ahead of {rival}, {shape['shape']}"
                lines.append([what, f"< {theirs:.3f}", f"{mine:.3f}", met])
    return markdown(["what", "target", "measured", "met"], lines)


def _memory(found: list[Figures]) -> str:
    plain = ["plain step", *(megabytes(shape["peak_bytes"].get("plain")) for shape in found)]
    grid = _grid(found, _peak, "/step")
    header, line, rest = grid.split("\n", 2)
    return "\n".join([header, line, "| " + " | ".join(plain) + " |", rest])


def _failures(found: list[Figures]) -> str:
    reasons: dict[str, list[str]] = {}
    for shape in found:
        for key, figures in shape["stages"].items():
            if "failure" in figures:
                text = f"{key.split('/')[0]} fails: `{figures['failure']}`"
                where = reasons.setdefault(text, [])
                if shape["shape"] not in where:
                    where.append(shape["shape"])
    return "".join(f"\n- {text} ({', '.join(shapes)})" for text, shapes in reasons.items())


def render(found: list[Figures]) -> str:
    """All tables as Markdown."""
    if not found:
        return "Nothing measured yet.\n"
    loads = ", ".join(f"{shape['shape']} {max(shape['load']):.0f}" for shape in found)
    parts = [
        f"{machine(found)} Load of the machine: {loads}.{_failures(found)}",
        "### Targets of the factors\n\n" + _targets(found),
        "### Time of the factors, as a ratio to a plain step\n\nMedian (quartiles).\n\n"
        + _grid(found, _time),
    ]
    if any("peak_bytes" in shape and shape["peak_bytes"] for shape in found):
        parts.append(
            "### Peak memory of each stage (MB)\n\nAbove the resting model, batch and what the "
            "stages before it made. After the @: how many examples at a time.\n\n" + _memory(found)
        )
    parts.append(
        "### Worst relative error of a layer against the definition in float64\n\n"
        + _grid(found, _error, "/step")
    )
    return "\n\n".join(parts) + "\n"
