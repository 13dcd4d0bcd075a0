"""What a task loses along the way from the base model to the tuned one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

_KNOWN = ("predicted", "predicted_low", "predicted_high", "measured", "measured_low")
_NOT_METHODS = {
    *("task", "t", "first", "second", "unit", "n_examples", "n_tokens"),
    *(f"{a}{b}" for a in ("predicted", "measured", "error") for b in ("", "_low", "_high")),
}
_DASHES = {"diagonal": (1.5, 2), "kfac": (5, 2), "ekfac": (8, 2, 2, 2)}


@dataclass(frozen=True)
class PathData:
    """Predicted and measured along the straight line between two models.

    Attributes:
        tasks: Tasks in page order.
        methods: Stored structures.
        rows: One per task and t.
        ends: Task to its last stage.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    ends: Mapping[str, Mapping[str, Any]]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for task in self.tasks:
            end = self.ends.get(task)
            if not end:
                continue
            change = end["loss_change"]
            verb = "loses" if change > 0 else "gains"
            parts.append(
                f"{text.spoken(task)} {verb} {text.pretty(abs(change))} nats per token "
                f"{text.interval(end['loss_change_low'], end['loss_change_high'])}, predicted in "
                f"full {text.pretty(end['predicted'])}"
            )
        return f"{'; '.join(parts)}." if parts else "Nothing was measured."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each panel follows one task from the base model (t = 0) to the tuned one (t = 1) on "
            "the straight line between their weights. Dots: measured change of loss with 95% "
            "intervals over examples. Solid line: the prediction in full from the base model "
            "alone, with its band; broken lines: what stored Fishers predict, which share its "
            "first order. Where the dots leave the line, the quadratic picture ends."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per task and t.
        """
        columns = (
            Column("task", "Task", "text"),
            Column("t", "t", "number", "Fraction of the displacement"),
            Column("measured", "Measured", "number", "Change of loss, nats per token"),
            Column("measured_low", "2.5%", "number"),
            Column("measured_high", "97.5%", "number"),
            Column("predicted", "Full", "number"),
            *(Column(name, name, "number") for name in self.methods),
        )
        return Table(columns, self.rows, "Predicted and measured along the path")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Path", _draw(self)),)


def build(results: Mapping[str, Any]) -> PathData | None:
    """Read the path of a forgetting study.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None without any point.
    """
    study = results.get("study") or {}
    found = study.get("path") or []
    if not found or study.get("outcome") == "no_displacement":
        return None
    methods = [key for key in found[0] if key not in _NOT_METHODS]
    keys = ("t", *_KNOWN, "measured_high", *methods)
    rows = tuple(
        {"task": str(row["task"]), **{key: text.number(row.get(key)) for key in keys}}
        for row in found
    )
    stages = study.get("stages") or []
    numbers = ("loss_change", "loss_change_low", "loss_change_high", "predicted")
    ends = {str(row["task"]): {key: text.number(row.get(key)) for key in numbers} for row in stages}
    return PathData(
        tuple(dict.fromkeys(row["task"] for row in rows)),
        tuple(methods),
        rows,
        {task: end for task, end in ends.items() if end["loss_change"] is not None},
    )


def _draw(data: PathData) -> Any:
    with canvas.style("path"):
        columns = min(3, len(data.tasks))
        lines = math.ceil(len(data.tasks) / columns)
        height, wide = 300.0, (canvas.WIDTH - 20.0) / columns
        figure = canvas.new_figure(lines * height + 10)
        looks = palette.series(data.tasks)
        tips: list[str] = []
        for n, task in enumerate(data.tasks):
            box = (70 + (n % columns) * wide, 30 + (n // columns) * height, wide - 90, height - 90)
            axes = canvas.add_axes(figure, box)
            rows = [row for row in data.rows if row["task"] == task]
            t = np.array([0.0, *(row["t"] for row in rows)])

            def curve(key: str, rows: list = rows) -> np.ndarray:
                return np.array([0.0, *(np.nan if r[key] is None else r[key] for r in rows)])

            color = looks[task].color
            axes.axhline(0, color=palette.GRID, lw=0.8)
            axes.fill_between(
                t, curve("predicted_low"), curve("predicted_high"), color=color, alpha=0.15, lw=0
            )
            axes.plot(t, curve("predicted"), color=color, lw=2)
            for method in data.methods:
                dashes = _DASHES.get(method, (3, 3))
                axes.plot(t, curve(method), color=palette.MUTED, lw=1.4, ls=(0, dashes))
            y = curve("measured")
            ends = np.abs(np.array([y - curve("measured_low"), curve("measured_high") - y]))
            axes.errorbar(t, y, yerr=ends, fmt="none", ecolor=palette.INK, elinewidth=1.2)
            axes.scatter(t[1:], y[1:], s=24, color=palette.INK, zorder=3, gid="points")
            tips += [
                f"{task}, t = {row['t']:g}: measured {text.pretty(row['measured'])}, predicted "
                f"{text.pretty(row['predicted'])}"
                for row in rows
            ]
            seen = np.concatenate([y, curve("predicted"), *(curve(m) for m in data.methods)])
            low, high = np.nanmin(seen), np.nanmax(seen)
            room = 0.12 * max(high - low, 1e-9)
            axes.set_ylim(low - room, high + room)
            axes.set_title(task, loc="left", size=13, parse_math=False)
            axes.set_xlabel("t, fraction of the displacement")
            if n % columns == 0:
                axes.set_ylabel("change of loss")
            if n == 0:
                _key(axes, data.methods, color)
        return canvas.to_svg(
            figure,
            name="path",
            label="Predicted and measured along the path",
            hover={"points": tips},
        )


def _key(axes: Any, methods: tuple[str, ...], color: str) -> None:
    entries = [("measured", palette.INK, "o", None), ("full", color, "", ())]
    entries += [(m, palette.MUTED, "", _DASHES.get(m, (3, 3))) for m in methods]
    for label, look, marker, dashes in entries:
        style = "none" if dashes is None else "-" if not dashes else (0, dashes)
        axes.plot([], [], color=look, marker=marker, ls=style, label=label, ms=5)
    axes.legend(frameon=False, fontsize=10.5, loc="best", labelcolor=palette.INK)


FIGURE = FigureSpec(
    "path",
    "What is lost along the way",
    build,
    lambda results: "Nothing has moved, so there is no path.",
)
