"""Loss of each task while more and more of the model is removed, in several orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View, per_level
from fisherscope.report.figures.fractions import across, dress
from fisherscope.report.figures.panels import Panels, legend
from fisherscope.report.tables import Column, Table
from fisherscope.studies.percolation.orders import ORDERS
from fisherscope.studies.percolation.sentences import ORDER_NAMES, percent

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RemovalData:
    """Curves and thresholds of all models and levels.

    Attributes:
        models: The models.
        tasks: The tasks.
        intact: Model and task to the row of the intact model.
        curves: Rows of the curves whose order was read from the task itself, or from none.
        thresholds: Rows of their thresholds.
        structure: Rows of the thresholds of the neuron graph.
        levels: What was removed.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    intact: Mapping[tuple[str, str], Row]
    curves: tuple[Row, ...]
    thresholds: tuple[Row, ...]
    structure: tuple[Row, ...]
    levels: tuple[str, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = [
            said
            for model in self.models
            for task in self.tasks
            if (said := self._said(model, task))
        ]
        graph = [
            row["value"]
            for row in self.structure
            if (row["quantity"], row["order"]) == ("spanning", "fisher")
        ]
        if parts and graph:
            parts.append(
                "the neuron graph still joins input and output until "
                f"{text.percent(min(graph))} of its bonds are gone in Fisher order"
            )
        return f"{'; '.join(parts)}." if parts else "No threshold was reached in both orders."

    def _said(self, model: str, task: str) -> str:
        at = {
            row["order"]: text.number(row["value"])
            for row in self.thresholds
            if (row["model"], row["on"]) == (model, task)
            and (row["level"], row["quantity"]) == (self.levels[0], "midpoint")
        }
        attacks = [o for o in ORDERS if o not in {"random", "inverse"} and at.get(o)]
        if not attacks or not at.get("random"):
            return ""
        first = min(attacks, key=lambda order: at[order] or 1.0)
        whose = f" of {text.spoken(model)}" if len(self.models) > 1 else ""
        return (
            f"{text.spoken(task)}{whose} is lost with {percent(at[first] or 0.0)} of the "
            f"{self.levels[0]}s in {ORDER_NAMES[first]} order, in random order with "
            f"{percent(at['random'] or 0.0)}"
        )

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
            Column("model", "Model", "text"),
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
            One view per level and model.
        """
        return per_level("removal", self.levels, self.models, lambda *where: _draw(self, *where))


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
    intact = {(row["model"], row["task"]): row for row in study.get("intact") or []}
    return RemovalData(
        tuple(dict.fromkeys(model for model, _ in intact)),
        tuple(dict.fromkeys(task for _, task in intact)),
        intact,
        curves,
        own("thresholds"),
        tuple(study.get("structure") or []),
        tuple(dict.fromkeys(row["level"] for row in curves)),
    )


def _draw(data: RemovalData, level: str, model: str, name: str) -> Any:
    with canvas.style(name):
        panels = Panels(data.tasks)
        figure = panels.figure()
        sheet = canvas.add_sheet(figure)
        drawn = [r for r in data.curves if (r["level"], r["model"]) == (level, model)]
        orders = [order for order in ORDERS if any(r["order"] == order for r in drawn)]
        looks = palette.series(ORDERS)
        legend(sheet, [(ORDER_NAMES[o], looks[o].color, "-") for o in orders])
        for task, axes, leftmost in panels.place(figure, sheet):
            mine = [r for r in drawn if r["on"] == task]
            _panel(axes, data, model, task, mine, looks)
            axes.set_xlabel(f"fraction of {level}s removed")
            if leftmost:
                axes.set_ylabel("loss, nats per token")
        label = f"Loss while {level}s are removed. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label)


def _panel(
    axes: Axes,
    data: RemovalData,
    model: str,
    task: str,
    rows: list[Row],
    looks: Mapping[str, palette.Series],
) -> None:
    whole = data.intact[model, task]
    intact, uninformed = whole["loss"], whole["uninformed"]
    room = max(uninformed - intact, 0.05 * abs(intact), 1e-6)
    ceiling = uninformed + 0.25 * room
    for level in (intact, uninformed):
        axes.axhline(level, color=palette.MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    for order, look in looks.items():
        mine = sorted((r for r in rows if r["order"] == order), key=lambda r: r["removed"])
        if not mine:
            continue
        x = [across(r["fraction"]) for r in mine]
        up = [[_cut(r[key], ceiling) for r in mine] for key in ("loss", "low", "high")]
        axes.fill_between(x, up[1], up[2], color=look.color, alpha=0.18, linewidth=0)
        axes.plot(x, up[0], color=look.color, linewidth=2, marker="o", markersize=3)
    starts = [r["fraction"] for r in rows if r["removed"]]
    dress(axes, min(starts, default=1e-3))
    axes.set_ylim(intact - 0.12 * room, ceiling)
    for mark in data.structure:
        own = mark["model"] == model and mark["by"] == task
        if own and (mark["order"], mark["quantity"]) == ("fisher", "spanning"):
            axes.plot(
                [across(mark["value"])], [0.03], marker="^", markersize=8, color=palette.MUTED,
                transform=axes.get_xaxis_transform(), zorder=4,
            )  # fmt: skip
    axes.grid(True)
    axes.set_axisbelow(True)


def _cut(value: float | None, ceiling: float) -> float:
    # A loss that was not finite is written as null.
    return ceiling if value is None else min(value, ceiling)


FIGURE = FigureSpec(
    "removal",
    "How the tasks fail",
    build,
    lambda results: "The study removed nothing.",
)
