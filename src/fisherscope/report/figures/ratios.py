"""Brittleness ratios with their intervals, beside the null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

Row = Mapping[str, Any]
WHERE = {
    "progress": "at equal progress",
    "level": "at equal loss of the new task",
    "same_rate": "at equal rate and steps",
}
_COLORS = {"more_brittle": palette.HARM, "less_brittle": palette.HELP}


@dataclass(frozen=True)
class RatiosData:
    """Every ratio of damages.

    Attributes:
        rows: A row per model, criterion and task, as the study has them.
    """

    rows: tuple[Row, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        known = [r for r in self.rows if text.number(r.get("ratio")) is not None]
        if not known:
            return "No ratio is defined: no model that others are compared with has lost anything."
        main = next((r for r in known if (r["task"], r["criterion"]) == ("all", "progress")), None)
        resolved = [r for r in known if r["outcome"] in _COLORS]
        line = f"{len(resolved)} of {text.plural(len(known), 'ratio')} can be told apart from 1"
        if main is not None:
            line += (
                f"; all old tasks together at equal progress: {text.pretty(main['ratio'])} "
                f"{text.interval(main['ratio_low'], text.number(main['ratio_high']))}"
            )
        return line + "."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each line is the damage of a model over that of the model it is compared with; at 1, "
            "the null, both lose the same. Bars: 95% intervals over seeds and examples, the same "
            "resamples for both models. Red: more brittle; blue: less; grey: not told apart. A "
            "line without a dot has no ratio, for the reason that is written there (no damage: "
            "the model compared with has lost nothing for sure), beside the difference in nats "
            "per token; what is below the scale, gains among it, is drawn at its left end. Each "
            "interval stands for itself: of many lines one in twenty leaves out 1 by chance."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per ratio.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("reference", "Compared with", "text"),
            Column("criterion", "Where", "text"),
            Column("task", "Task", "text"),
            Column("ratio", "Ratio", "number"),
            Column("ratio_low", "2.5%", "number"),
            Column("ratio_high", "97.5%", "number"),
            Column("damage", "Damage", "number", "Nats per token"),
            Column("reference_damage", "Of the other", "number", "Nats per token"),
            Column("difference", "Difference", "number"),
            Column("difference_low", "2.5%", "number"),
            Column("difference_high", "97.5%", "number"),
            Column("outcome", "Outcome", "text"),
            Column("n_seeds", "Seeds", "integer"),
        )
        return Table(columns, self.rows, "Damage of one model over that of another")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Ratios", _draw(self)),)


def build(results: Mapping[str, Any]) -> RatiosData | None:
    """Read the ratios of a brittleness study.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None without any ratio.
    """
    rows = tuple((results.get("study") or {}).get("ratios") or [])
    return RatiosData(rows) if rows else None


def _draw(data: RatiosData) -> Any:
    with canvas.style("ratios"):
        line, left, top = 26.0, 400.0, 16.0
        high = line * len(data.rows)
        figure = canvas.new_figure(top + high + 56)
        several = len({r["model"] for r in data.rows}) > 1
        axes = canvas.add_axes(figure, (left, top, canvas.WIDTH - left - 40, high))
        ends = [
            v
            for r in data.rows
            for key in ("ratio", "ratio_low", "ratio_high")
            if (v := text.number(r.get(key))) is not None and v > 0
        ]
        low, high_end = min([0.5, *ends]) / 1.15, max([2.0, *ends]) * 1.15
        axes.set_xscale("log")
        axes.set_xlim(low, high_end)
        axes.axvline(1, color=palette.INK, lw=1.2, gid="null")
        tips: list[str] = []
        names = []
        for y, row in enumerate(data.rows):
            names.append(_name(row, several=several))
            ratio = text.number(row.get("ratio"))
            if ratio is None:
                axes.text(1.02, y, _why(row), va="center", size=11, color=palette.MUTED)
                continue
            color = _COLORS.get(row["outcome"], palette.MUTED)
            start = max(text.number(row["ratio_low"]) or low, low)
            stop = text.number(row["ratio_high"])
            # An end that is not a number lies beyond any.
            axes.plot([start, high_end if stop is None else stop], [y, y], color=color, lw=2)
            axes.scatter([max(ratio, low)], [y], s=46, color=color, zorder=3, gid="points")
            tips.append(
                f"{names[-1]}: {text.pretty(ratio)} "
                f"{text.interval(text.number(row['ratio_low']), stop)}"
            )
        axes.set_yticks(np.arange(len(names)), canvas.fit(names, left - 20, 11))
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("damage over damage (log scale)")
        return canvas.to_svg(
            figure, name="ratios", label="Brittleness ratios", hover={"points": tips}
        )


def _why(row: Row) -> str:
    said = f"no ratio: {str(row['outcome']).replace('_', ' ')}"
    gap = text.number(row.get("difference"))
    if gap is None:
        return said
    ends = (text.number(row.get(f"difference_{end}")) for end in ("low", "high"))
    return f"{said}; difference {text.pretty(gap)} {text.interval(*ends)}"


def _name(row: Row, *, several: bool) -> str:
    task = "all old tasks" if row["task"] == "all" else str(row["task"])
    whose = f"{row['model']}, " if several else ""
    return f"{whose}{task}, {WHERE.get(str(row['criterion']), row['criterion'])}"


FIGURE = FigureSpec(
    "ratios",
    "The brittleness ratio",
    build,
    lambda results: "Some model made no progress on the new task, so there is no ratio.",
)
