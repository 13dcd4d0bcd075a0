"""The single units that cost most when they are really removed, and who had ranked them where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View, per_level
from fisherscope.report.tables import Column, Table
from fisherscope.studies.percolation.sentences import ORDER_NAMES

Row = Mapping[str, Any]
_SHOWN = 8
_LABEL, _RANK, _LINE, _HEAD = 330.0, 92.0, 24.0, 58.0


@dataclass(frozen=True)
class CriticalData:
    """Candidates of all models, levels and tasks, the most costly first.

    Attributes:
        rows: One row per candidate.
        ranked: Orders that rank them.
        models: The models.
        levels: What was removed.
        tasks: The tasks.
    """

    rows: tuple[Row, ...]
    ranked: tuple[str, ...]
    models: tuple[str, ...]
    levels: tuple[str, ...]
    tasks: tuple[str, ...]

    def of(self, model: str, level: str, task: str) -> list[Row]:
        """The candidates of one task.

        Args:
            model: The model.
            level: What was removed.
            task: The task.

        Returns:
            The most costly first.
        """
        own = (model, level, task)
        return [r for r in self.rows if (r["model"], r["level"], r["by"]) == own]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for model in self.models:
            for task in self.tasks:
                first = next(iter(self.of(model, self.levels[0], task)), None)
                if first is None:
                    continue
                whose = f" of {text.spoken(model)}" if len(self.models) > 1 else ""
                ranks = ", ".join(
                    f"{ORDER_NAMES[order]} {first[f'rank_{order}']:,}"
                    for order in self.ranked
                    if text.number(first.get(f"rank_{order}")) is not None
                )
                sure = "" if first["resolved"] else ", not told apart from the next"
                parts.append(
                    f"for {text.spoken(task)}{whose} the most costly {first['level']} is "
                    f"{first['unit']} ({text.pretty(first['cost'])} nats per token{sure}), ranked "
                    f"{ranks}"
                )
        joined = "; ".join(parts)
        return f"{joined[0].upper()}{joined[1:]}." if joined else "No unit was removed by itself."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Every candidate was removed by itself, exactly. Dot: the increase of the loss, with "
            "its 95% interval over examples; filled if it costs more than the next one in at "
            "least 97.5% of the resamples. On the right: its rank in each order, 1 being the unit "
            "that the order would remove first; bold where the order names it first. Candidates "
            "are the top units of every order, so a costly unit that no order ranks high is not "
            "here."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per candidate.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("level", "Unit is", "text"),
            Column("by", "Task", "text"),
            Column("place", "Place", "integer"),
            Column("unit", "Unit", "text"),
            Column("cost", "Cost", "number", "Increase of the loss, nats per token"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("resolved", "Resolved", "flag", "Costs more than the next one"),
            *(Column(f"rank_{o}", f"Rank by {ORDER_NAMES[o]}", "integer") for o in self.ranked),
        )
        return Table(columns, self.rows, "Units that were removed one by one")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per level and model.
        """
        return per_level("critical", self.levels, self.models, lambda *where: _draw(self, *where))


def build(results: Mapping[str, Any]) -> CriticalData | None:
    """Read the candidates.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None where no unit was removed by itself.
    """
    rows = tuple((results.get("study") or {}).get("critical") or [])
    if not rows:
        return None
    keys = dict.fromkeys(key for row in rows for key in row)
    return CriticalData(
        rows,
        tuple(key.removeprefix("rank_") for key in keys if key.startswith("rank_")),
        tuple(dict.fromkeys(row["model"] for row in rows)),
        tuple(dict.fromkeys(row["level"] for row in rows)),
        tuple(dict.fromkeys(row["by"] for row in rows)),
    )


def _draw(data: CriticalData, level: str, model: str, name: str) -> Any:
    with canvas.style(name):
        blocks = [(task, data.of(model, level, task)[:_SHOWN]) for task in data.tasks]
        blocks = [(task, rows) for task, rows in blocks if rows]
        heights = [_HEAD + _LINE * len(rows) + 34 for _, rows in blocks]
        figure = canvas.new_figure(sum(heights) + 6)
        sheet = canvas.add_sheet(figure)
        looks = palette.series(data.tasks)
        y = 0.0
        for (task, rows), height in zip(blocks, heights, strict=True):
            _block(figure, sheet, data, task, rows, y, looks[task].color)
            y += height
        return canvas.to_svg(figure, name=name, label=f"Most critical {level}s. {data.caption()}")


def _block(
    figure: Any, sheet: Axes, data: CriticalData, task: str, rows: list[Row], y: float, color: str
) -> None:
    right = canvas.WIDTH - _RANK * len(data.ranked)
    canvas.write(sheet, 4, y + 22, canvas.fit([task], _LABEL, 14)[0], size=14, weight="bold")
    for k, order in enumerate(data.ranked):
        x = right + (k + 1) * _RANK - 8
        canvas.write(sheet, x, y + 44, ORDER_NAMES[order], size=11, ha="right", color=palette.MUTED)
    top = y + _HEAD
    axes = canvas.add_axes(figure, (_LABEL + 8, top, right - _LABEL - 28, _LINE * len(rows)))
    for i, row in enumerate(rows):
        middle = top + (i + 0.5) * _LINE
        label = canvas.fit([row["unit"]], _LABEL - 8, 11)[0]
        canvas.write(sheet, _LABEL, middle, label, size=11, ha="right")
        low, high = text.number(row["low"]), text.number(row["high"])
        if low is not None and high is not None:
            axes.plot([low, high], [i, i], color=color, linewidth=2)
        fill = color if row["resolved"] else palette.CARD
        axes.plot([row["cost"]], [i], marker="o", markersize=7, color=fill, markeredgecolor=color,
                  markeredgewidth=1.6, zorder=3)  # fmt: skip
        for k, order in enumerate(data.ranked):
            rank = text.number(row.get(f"rank_{order}"))
            first = rank == 1
            canvas.write(
                sheet, right + (k + 1) * _RANK - 8, middle,
                text.MISSING if rank is None else f"{rank:,.0f}", size=11, ha="right",
                weight="bold" if first else "normal", color=palette.INK if first else palette.MUTED,
            )  # fmt: skip
    axes.axvline(0, color=palette.MUTED, linewidth=1, zorder=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("increase of the loss, nats per token")
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


FIGURE = FigureSpec(
    "critical",
    "The most critical units",
    build,
    lambda results: "No unit was removed by itself (candidates=0).",
)
