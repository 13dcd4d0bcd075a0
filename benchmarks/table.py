"""The tables of ``README.md`` from the raw figures in ``results/``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import SHAPES

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
# Of fp32 rounding 1e-6 is usual; what is called wrong here is a different quantity.
WRONG = 1e-3
DIAGONAL = [
    "ours",
    "ours-unfused",
    "naive",
    "vmap",
    "opacus",
    "nngeometry",
    "backpack",
    "kronfluence",
    "floor",
    "forward",
    "plain",
]
NEIGHBOURS = ["naive", "vmap", "opacus", "nngeometry", "backpack", "kronfluence"]
OTHER = ["ours-position", "ours-grouped", "ours-mc", "ours-plan"]

Figures = dict[str, Any]


def load(folder: Path) -> list[Figures]:
    """The raw figures of every measured shape, in the order of the shapes."""
    paths = [folder / f"{name}.json" for name in SHAPES]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def is_wrong(figures: Figures) -> bool:
    """Whether what a method returns is another quantity than the reference."""
    return "errors" in figures and not figures["errors"]["worst"] <= WRONG


def _time(figures: Figures) -> str:
    if "failure" in figures:
        return "fails"
    if "ratio" not in figures:
        return "–"
    text = f"{figures['ratio']:.2f} ({figures['ratio_q1']:.2f}–{figures['ratio_q3']:.2f})"
    if is_wrong(figures):
        return f"~~{text}~~ wrong"
    return text + _part(figures)


def _part(figures: Figures) -> str:
    errors = figures.get("errors")
    if errors is None or errors["tensors"] == errors["of_tensors"]:
        return ""
    return f" [{errors['tensors']}/{errors['of_tensors']}]"


def _memory(figures: Figures) -> str:
    value = figures.get("peak_bytes")
    if value is None:
        return "–"
    return megabytes(value) + (f" @{figures['chunk']}" if "chunk" in figures else "")


def megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.0f}"


def _error(figures: Figures) -> str:
    if "failure" in figures:
        return "fails"
    if "errors" not in figures:
        return "–"
    errors = figures["errors"]
    text = f"{errors['worst']:.0e}"
    if is_wrong(figures):
        text = f"**{text}** `{errors['tensor']}`"
    if errors["tensors"] < errors["of_tensors"]:
        text += f", {errors['tensors']} of {errors['of_tensors']} tensors"
    return text


def _labels(found: list[Figures], names: list[str]) -> dict[str, str]:
    return {
        name: shape["methods"][name]["label"]
        for shape in found
        for name in names
        if name in shape["methods"]
    }


def _grid(found: list[Figures], names: list[str], cell: Callable[[Figures], str]) -> str:
    names = [name for name in names if any(name in shape["methods"] for shape in found)]
    labels = _labels(found, names)
    rows = [
        [shape["shape"], *(cell(shape["methods"].get(name, {})) for name in names)]
        for shape in found
    ]
    return markdown(["shape", *(labels[name] for name in names)], rows)


def _findings(found: list[Figures]) -> list[str]:
    """Why methods failed or cover a part only, each reason once."""
    reasons: dict[str, list[str]] = {}
    for shape in found:
        for figures in shape["methods"].values():
            if "failure" in figures:
                text = f"{figures['label']} fails: `{figures['failure']}`"
            elif figures.get("note"):
                text = f"{figures['label']}: {figures['note']}"
            else:
                continue
            reasons.setdefault(text, []).append(shape["shape"])
    return [f"- {text} ({', '.join(shapes)})" for text, shapes in reasons.items()]


def further_draws(shape: Figures) -> float | None:
    """What the second draw of sampled labels costs, as a ratio to a plain step."""
    one, two = (shape["methods"].get(name, {}) for name in ("ours-mc", "ours-mc2"))
    if "ratios" not in one or "ratios" not in two:
        return None
    return statistics.median(b - a for a, b in zip(one["ratios"], two["ratios"], strict=True))


def _other(found: list[Figures]) -> str:
    names = [name for name in OTHER if any(name in shape["methods"] for shape in found)]
    if not names:
        return ""
    labels = _labels(found, names)
    rows = []
    for shape in found:
        draw = further_draws(shape)
        cells = [_time(shape["methods"].get(name, {})) for name in names]
        rows.append([shape["shape"], *cells, "–" if draw is None else f"{draw:.2f}"])
    header = ["shape", *(labels[name] for name in names), "each further draw"]
    return "\n\n### Other estimates of ours\n\n" + markdown(header, rows)


def _peaks(found: list[Figures]) -> str:
    if not any("peak_bytes" in f for shape in found for f in shape["methods"].values()):
        return ""
    return (
        "\n\n### Peak memory above the resting model (MB)\n\n"
        "After the @: how many examples at a time, which is the fastest number of them.\n\n"
        + _grid(found, DIAGONAL, _memory)
    )


def _batches(found: list[Figures]) -> str:
    """Peak memory at one and at four batches, and how much of it is beyond a plain step."""
    rows = []
    for shape in found:
        peaks_of = shape.get("batch_memory", {})
        base = list(peaks_of.get("plain", {}).values())
        for name, peaks in peaks_of.items():
            both = list(peaks.values())
            above: list[int | None] = [None, None]
            if base and name != "plain":
                pairs = zip(both, base, strict=True)
                above = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            where = f"{shape['shape']}, batch {' → '.join(peaks)}"
            rows.append([where, _labels([shape], [name])[name], *map(megabytes, both + above)])
    if not rows:
        return ""
    header = ["shape", "method", "peak, B", "peak, 4B", "beyond a plain step, B", "…, 4B"]
    return "\n\n### Does memory grow with the batch (MB)?\n\n" + markdown(header, rows)


def _ratios(found: list[Figures], name: str, keep: Callable[[str], bool]) -> dict[str, float]:
    return {
        shape["shape"]: shape["methods"][name]["ratio"]
        for shape in found
        if keep(shape["shape"]) and "ratio" in shape["methods"].get(name, {})
    }


def _targets(found: list[Figures]) -> str:
    """Each target beside what was measured."""

    def transformer(shape: str) -> bool:
        return shape != "resnet"

    lines: list[list[str]] = []
    rivals: list[list[str]] = []

    def add(what: str, value: float | None, limit: float) -> None:
        if value is not None:
            met = "yes" if value <= limit else "**no**"
            lines.append([what, f"≤ {limit:.2f}", f"{value:.2f}", met])

    ours = _ratios(found, "ours", transformer)
    if ours:
        add("diagonal, median over language models", statistics.median(ours.values()), 1.10)
        add("diagonal, slowest language model", max(ours.values()), 1.20)
    add("diagonal, resnet", _ratios(found, "ours", lambda s: s == "resnet").get("resnet"), 1.40)
    for name, value in ours.items():
        if name.endswith("vocab32k"):
            add(f"diagonal, {name}", value, 0.85)
    for name, label, limit in [
        ("ours-position", "position unit, slowest", 1.15),
        ("ours-grouped", "grouped, slowest", 1.05),
    ]:
        add(label, max(_ratios(found, name, transformer).values(), default=None), limit)
    draws = [d for shape in found if (d := further_draws(shape)) is not None]
    add("each further draw, slowest", max(draws, default=None), 0.85)
    for shape in found:
        mine = shape["methods"].get("ours", {}).get("ratio")
        for name in NEIGHBOURS if mine is not None else []:
            figures = shape["methods"].get(name, {})
            # A wrong result is no rival; an incomplete one is named as such.
            if "ratio" not in figures or is_wrong(figures):
                continue
            what = f"{shape['shape']}: ahead of {figures['label']}{_part(figures)}"
            met = "yes" if mine < figures["ratio"] else "**no**"
            rivals.append([what, f"< {figures['ratio']:.2f}", f"{mine:.2f}", met])
        # The nearest rival says enough where all are behind.
        lost = [row for row in rivals if row[-1] != "yes"]
        lines += lost or sorted(rivals, key=lambda row: row[1])[:1]
        rivals.clear()
    if not lines:
        return ""
    return "\n\n### Targets\n\n" + markdown(["what", "target", "measured", "met"], lines)


def machine(found: list[Figures]) -> str:
    texts = {}
    for shape in found:
        machine, settings = shape["machine"], shape["settings"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
        text = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
            f"{machine['python']}, {versions}. {settings['threads']} thread, {settings['clock']} "
            f"time, {settings['repeats']} runs of each method after {settings['warmup']} untimed"
        )
        texts.setdefault(text, []).append(shape["shape"])
    if len(texts) == 1:
        return f"Measured on: {next(iter(texts))}."
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in texts.items())


def render(found: list[Figures]) -> str:
    """All tables as Markdown."""
    if not found:
        return "Nothing measured yet.\n"
    legend = "\n".join(f"- `{shape['shape']}`: {shape['description']}" for shape in found)
    findings = "\n".join(_findings(found))
    return (
        f"{machine(found)}\n\n{legend}\n\n"
        "### Time, as a ratio to a plain step\n\nMedian (quartiles). In brackets: how many "
        "of the parameter tensors the method covers, where it is not all of them.\n\n"
        f"{_grid(found, DIAGONAL, _time)}\n\n{findings}"
        f"{_peaks(found)}"
        "\n\n### Worst relative error of a tensor against brute force in float64\n\n"
        f"{_grid(found, DIAGONAL[:-3], _error)}"
        f"{_other(found)}{_batches(found)}{_targets(found)}\n"
    )


def write(readme: Path, figures: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the two markers of the file."""
    begin, end = markers
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    readme.write_text(f"{before}{begin}\n\n{figures}\n{end}{after}", encoding="utf-8")
