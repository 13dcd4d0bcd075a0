"""Thresholds of several models side by side, with the verdict of the paired comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.figures.fractions import across, dress
from fisherscope.report.figures.panels import Panels, legend
from fisherscope.report.tables import Column, Table
from fisherscope.studies.percolation.orders import ORDERS
from fisherscope.studies.percolation.sentences import ORDER_NAMES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class VersusData:
    """Thresholds of all models and how they differ.

    Attributes:
        models: The models.
        tasks: The tasks.
        levels: What was removed.
        midpoints: Rows of the thresholds, orders read from the task itself or from none.
        differences: Rows of the paired comparison.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    levels: tuple[str, ...]
    midpoints: tuple[Row, ...]
    differences: tuple[Row, ...]

    def resolved(self, level: str, task: str, order: str) -> bool:
        """Whether any two models differ.

        Args:
            level: What was removed.
            task: The task.
            order: The order.

        Returns:
            True if a paired interval of the threshold's ratio leaves out 1.
        """
        own = (level, task, order, "midpoint", "resolved")
        keys = ("level", "on", "order", "quantity", "verdict")
        return any(tuple(row[key] for key in keys) == own for row in self.differences)

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        shown = [
            r for r in self.differences if r["quantity"] == "midpoint" and r["outcome"] == "ok"
        ]
        sure = [row for row in shown if row["verdict"] == "resolved"]
        if not shown:
            return "No two models reach a threshold in the same order."
        start = (
            f"{len(sure)} of {text.plural(len(shown), 'comparison')} of a threshold "
            f"{'is' if len(sure) == 1 else 'are'} resolved"
        )
        if not sure:
            return f"{start}."
        far = max(sure, key=lambda row: abs(np.log(row["value"])))
        return (
            f"{start}; the largest: {text.spoken(far['on'])} in {ORDER_NAMES[far['order']]} order "
            f"is lost at {text.pretty(far['value'])} times "
            f"{text.interval(text.number(far['low']), text.number(far['high']))} the fraction in "
            f"{text.spoken(far['model_b'])} as in {text.spoken(far['model_a'])}."
        )

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Dot: the fraction at which half of the task is lost, with its 95% interval over "
            "examples and repetitions; further to the right is more robust. Orders are each "
            "model's own. A star marks a resolved difference: in pairs (the same examples and "
            "repetitions in every resample) the 95% interval of the ratio leaves out 1. Two "
            "intervals may overlap and the difference still be resolved, because hard examples "
            "are hard for both. Not corrected for the number of comparisons."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per two models, order, task and quantity.
        """
        columns = (
            Column("model_a", "A", "text"),
            Column("model_b", "B", "text"),
            Column("level", "Removed", "text"),
            Column("order", "Order", "text"),
            Column("on", "Task", "text"),
            Column("quantity", "Quantity", "text"),
            Column("compared", "By", "text", "Ratio B / A, or difference B − A"),
            Column("value", "Value", "number"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("verdict", "Verdict", "text"),
            Column("outcome", "Outcome", "text"),
        )
        return Table(columns, self.differences, "Models compared in pairs")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per level.
        """
        return tuple(View(f"{level}s".capitalize(), _draw(self, level)) for level in self.levels)


def build(results: Mapping[str, Any]) -> VersusData | None:
    """Read the comparison.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None for a single model.
    """
    study = results.get("study") or {}
    differences = tuple(study.get("differences") or [])
    if not differences:
        return None
    midpoints = tuple(
        row
        for row in study.get("thresholds") or []
        if row["quantity"] == "midpoint" and row["by"] in {row["on"], ""}
    )
    return VersusData(
        tuple(dict.fromkeys(row["model"] for row in midpoints)),
        tuple(dict.fromkeys(row["on"] for row in midpoints)),
        tuple(dict.fromkeys(row["level"] for row in midpoints)),
        midpoints,
        differences,
    )


def _draw(data: VersusData, level: str) -> Any:
    with canvas.style(f"versus-{level}"):
        mine = [row for row in data.midpoints if row["level"] == level]
        orders = [order for order in ORDERS if any(row["order"] == order for row in mine)]
        panels = Panels(data.tasks, high=max(120.0, 46.0 * len(orders)))
        figure = panels.figure()
        sheet = canvas.add_sheet(figure)
        looks = palette.series(data.models)
        legend(sheet, [(model, looks[model].color, "-") for model in data.models])
        for task, axes, leftmost in panels.place(figure, sheet):
            own = [row for row in mine if row["on"] == task]
            _panel(axes, data, own, orders, looks)
            for i, order in enumerate(orders):
                if data.resolved(level, task, order):
                    canvas.write(axes, axes.get_xlim()[1], i, "★", size=14, ha="right")
            axes.set_yticks(
                range(len(orders)), [ORDER_NAMES[o] if leftmost else "" for o in orders]
            )
            axes.tick_params(axis="y", labelrotation=60, labelsize=9)
            axes.set_xlabel(f"fraction of {level}s at which half is lost")
        label = f"Thresholds of the models. {data.caption()}"
        return canvas.to_svg(figure, name=f"versus-{level}", label=label)


def _panel(
    axes: Axes,
    data: VersusData,
    rows: list[Row],
    orders: list[str],
    looks: Mapping[str, palette.Series],
) -> None:
    step = 0.5 / max(1, len(data.models))
    shown = []
    for row in rows:
        value = text.number(row["value"])
        if value is None:
            continue
        up = orders.index(row["order"]) + step * (
            data.models.index(row["model"]) - (len(data.models) - 1) / 2
        )
        low, high = (text.number(row[end]) for end in ("low", "high"))
        color = looks[row["model"]].color
        shown.append(value if low is None else low)
        # A limit beyond the curve is written as null.
        ends = [value if low is None else low, 1.0 if high is None else high]
        if row["outcome"] in {"ok", "at_first_unit"}:
            axes.plot([across(end) for end in ends], [up, up], color=color, linewidth=2)
        axes.plot([across(value)], [up], marker="o", markersize=6, color=color)
    axes.set_ylim(len(orders) - 0.4, -0.6)
    dress(axes, min(shown, default=1e-3))
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


FIGURE = FigureSpec(
    "versus",
    "Models compared",
    build,
    lambda results: "One model was studied; name several with --model NAME=PLACE to compare them.",
)
