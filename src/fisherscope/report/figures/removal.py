"""Loss of each task while more and more of the model is removed, in several orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table
from fisherscope.studies.percolation.orders import ORDERS
from fisherscope.studies.percolation.sentences import ORDER_NAMES

Row = Mapping[str, Any]
_ACROSS = 3
_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999)
_END = 0.9998


@dataclass(frozen=True)
class RemovalData:
    """Curves and thresholds of all levels.

    Attributes:
        tasks: Task to its intact row.
        curves: Rows of the curves whose order was read from the task itself, or from none.
        thresholds: Rows of their thresholds.
        structure: Rows of the thresholds of the neuron graph.
        levels: What was removed.
    """

    tasks: Mapping[str, Row]
    curves: tuple[Row, ...]
    thresholds: tuple[Row, ...]
    structure: tuple[Row, ...]
    levels: tuple[str, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for task in self.tasks:
            at = {
                row["order"]: text.number(row["value"])
                for row in self.thresholds
                if row["on"] == task
                and row["level"] == self.levels[0]
                and row["quantity"] == "midpoint"
            }
            attacks = [o for o in ORDERS if o not in {"random", "inverse"} and at.get(o)]
            if attacks and at.get("random"):
                first = min(attacks, key=lambda order: at[order] or 1.0)
                parts.append(
                    f"{text.spoken(task)} is lost with {text.percent(at[first])} of the "
                    f"{self.levels[0]}s in {ORDER_NAMES[first]} order, in random order with "
                    f"{text.percent(at['random'])}"
                )
        graph = [
            row["value"]
            for row in self.structure
            if (row["quantity"], row["order"]) == ("spanning", "fisher")
        ]
        if parts and graph:
            low = min(graph)
            parts.append(
                "the neuron graph still joins input and output until "
                f"{text.percent(low)} of its bonds are gone in Fisher order"
            )
        return f"{'; '.join(parts)}." if parts else "No threshold was reached in both orders."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Across: the fraction removed, stretched at both ends; up: the loss of the task, in "
            "nats per token, cut off a little above the uninformed loss (upper dashed line: a "
            "model that ignores its input). Lower dashed line: the intact model. Bands: 95% "
            "bootstrap intervals over examples and repetitions. A curve that rises further to the "
            "left breaks the task with less. The grey mark at the bottom is where the neuron graph "
            "loses its last path from input to output when bonds go in Fisher order."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per curve, task and fraction.
        """
        columns = (
            Column("level", "Removed", "text"),
            Column("order", "Order", "text"),
            Column("by", "Read from", "text"),
            Column("on", "Task", "text"),
            Column("removed", "Units", "integer"),
            Column("fraction", "Fraction", "percent"),
            Column("loss", "Loss", "number", "Nats per token"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("accuracy", "Accuracy", "percent"),
            Column("kl", "KL", "number", "From the intact model, nats per token"),
        )
        return Table(columns, self.curves, "Loss while more and more is removed")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per level.
        """
        return tuple(View(f"{level}s".capitalize(), _draw(self, level)) for level in self.levels)


def build(results: Mapping[str, Any]) -> RemovalData | None:
    """Read the curves.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without any curve.
    """
    study = results.get("study") or {}

    def own(name: str) -> tuple[Row, ...]:
        return tuple(r for r in study.get(name) or [] if not r.get("by") or r["by"] == r.get("on"))

    curves = own("curves")
    if not curves:
        return None
    return RemovalData(
        {row["task"]: row for row in study.get("intact") or []},
        curves,
        own("thresholds"),
        tuple(study.get("structure") or []),
        tuple(dict.fromkeys(row["level"] for row in curves)),
    )


def _across(fraction: float) -> float:
    # Log-odds, with the ends pulled in: zero lies before a single unit, one after the last tick.
    f = min(max(fraction, 1e-7), _END)
    return float(np.log(f / (1 - f)))


def _draw(data: RemovalData, level: str) -> Any:
    with canvas.style(f"removal-{level}"):
        names = list(data.tasks)
        rows = -(-len(names) // _ACROSS)
        across = min(len(names), _ACROSS)
        gap, left, top, high = 34.0, 56.0, 62.0, 270.0
        wide = (canvas.WIDTH - left - 10 - gap * (across - 1)) / across
        figure = canvas.new_figure(top + rows * (high + 84) + 6)
        sheet = canvas.add_sheet(figure)
        drawn = [r for r in data.curves if r["level"] == level]
        orders = [order for order in ORDERS if any(r["order"] == order for r in drawn)]
        looks = palette.series(ORDERS)
        x = left
        for order in orders:
            sheet.plot([x, x + 26], [20, 20], color=looks[order].color, linewidth=3)
            canvas.write(sheet, x + 33, 20, ORDER_NAMES[order], size=12)
            x += 33 + canvas.extent(ORDER_NAMES[order], 12) + 26
        for i, task in enumerate(names):
            row, column = divmod(i, _ACROSS)
            x, y = left + column * (wide + gap), top + row * (high + 84)
            title = canvas.fit([task], wide, 14)[0]
            canvas.write(sheet, x, y - 14, title, size=14, weight="bold")
            axes = canvas.add_axes(figure, (x, y, wide, high))
            mine = [r for r in drawn if r["on"] == task]
            _panel(axes, data, task, mine, looks)
            axes.set_xlabel(f"fraction of {level}s removed")
            if column == 0:
                axes.set_ylabel("loss, nats per token")
        label = f"Loss while {level}s are removed. {data.caption()}"
        return canvas.to_svg(figure, name=f"removal-{level}", label=label)


def _panel(
    axes: Axes,
    data: RemovalData,
    task: str,
    rows: list[Row],
    looks: Mapping[str, palette.Series],
) -> None:
    intact, uninformed = data.tasks[task]["loss"], data.tasks[task]["uninformed"]
    room = max(uninformed - intact, 0.05 * abs(intact), 1e-6)
    ceiling = uninformed + 0.25 * room
    for level in (intact, uninformed):
        axes.axhline(level, color=palette.MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for order, look in looks.items():
        mine = sorted((r for r in rows if r["order"] == order), key=lambda r: r["removed"])
        if not mine:
            continue
        x = [_across(r["fraction"]) for r in mine]
        up = [[_cut(r[key], ceiling) for r in mine] for key in ("loss", "low", "high")]
        axes.fill_between(x, up[1], up[2], color=look.color, alpha=0.18, linewidth=0)
        axes.plot(x, up[0], color=look.color, linewidth=2, marker="o", markersize=3)
    starts = [r["fraction"] for r in rows if r["removed"] == 1]
    axes.set_xlim(_across(0.3 * min(starts, default=1e-3)), _across(1.0) + 0.3)
    axes.set_ylim(intact - 0.12 * room, ceiling)
    for mark in data.structure:
        if (mark["order"], mark["by"], mark["quantity"]) == ("fisher", task, "spanning"):
            axes.plot(
                [_across(mark["value"])], [0.03], marker="^", markersize=8, color=palette.MUTED,
                transform=axes.get_xaxis_transform(), zorder=4,
            )  # fmt: skip
    shown = [t for t in _TICKS if _across(t) >= axes.get_xlim()[0]]
    axes.xaxis.set_major_locator(FixedLocator([_across(t) for t in shown][:: 1 + len(shown) // 7]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(True)
    axes.set_axisbelow(True)


def _cut(value: float | None, ceiling: float) -> float:
    # A loss that was not finite is written as null.
    return ceiling if value is None else min(value, ceiling)


def _tick(x: float, _: Any) -> str:
    return f"{100 / (1 + np.exp(-x)):.5g}%"


FIGURE = FigureSpec(
    "removal",
    "How the tasks fail",
    build,
    lambda results: "The study removed nothing.",
)
