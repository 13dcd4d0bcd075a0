"""The neuron graph beside the function: what breaks first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
_SHOWN = ("fisher", "random")
_DASHES = (0, (4, 2))


@dataclass(frozen=True)
class StructuralData:
    """Clusters of the neuron graph and what is left of each task.

    Attributes:
        models: The models.
        tasks: The tasks.
        clusters: Rows of the graph's curves.
        marks: Rows of its thresholds.
        kept: Model, task and order to (fraction of weights removed, part of the function that is
            left) along the curve.
        midpoints: Model, task and order to the functional threshold, where there is one.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    clusters: tuple[Row, ...]
    marks: tuple[Row, ...]
    kept: Mapping[tuple[str, str, str], list[tuple[float, float]]]
    midpoints: Mapping[tuple[str, str, str], float]

    def spanning(self, model: str, task: str, order: str) -> float | None:
        """When the graph loses its last path from input to output.

        Args:
            model: The model.
            task: The task that the order was read from.
            order: The order.

        Returns:
            Fraction of bonds removed, or ``None``.
        """
        found = [
            text.number(row["value"])
            for row in self.marks
            if (row["model"], row["order"], row["quantity"]) == (model, order, "spanning")
            and row["by"] in {task, ""}
        ]
        return found[0] if found else None

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for model in self.models:
            for task in self.tasks:
                function = self.midpoints.get((model, task, "fisher"))
                graph = self.spanning(model, task, "fisher")
                if function is None or graph is None:
                    continue
                whose = f" of {text.spoken(model)}" if len(self.models) > 1 else ""
                parts.append(
                    f"{text.spoken(task)}{whose} is lost at {text.percent(function)} in Fisher "
                    f"order, while its neuron graph joins input and output up to "
                    f"{text.percent(graph)}"
                )
        return f"{'; '.join(parts)}." if parts else "Function and graph have no common threshold."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Solid: the part of what the task's intact model knows that is left when a fraction "
            "of the weights is gone. Dashed: the share of all neurons in the largest cluster when "
            "the same fraction of the graph's bonds is gone. Triangle: the last path from input to "
            "output breaks. Square: where Molloy and Reed's criterion expects a random graph of "
            "the same degrees to break. A gap between solid and dashed is a network that is still "
            "connected and does not work any more."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per model, order and fraction of bonds removed.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("order", "Order", "text"),
            Column("by", "Read from", "text"),
            Column("removed", "Bonds", "integer"),
            Column("fraction", "Fraction", "percent"),
            Column("giant", "Largest", "percent", "Share of all neurons"),
            Column("second", "Second", "percent", "Share of all neurons"),
            Column("susceptibility", "Susceptibility", "number", "Mean size of other clusters"),
            Column("spans", "Joined", "percent", "Repetitions that join input and output"),
            Column("null_giant", "Largest, rewired", "percent", "Configuration model"),
            Column("kappa", "κ", "number", "⟨k²⟩/⟨k⟩; a random graph breaks at 2"),
        )
        return Table(columns, self.clusters, "Clusters of the neuron graph")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per model.
        """
        return tuple(
            View(model, _draw(self, model, f"structural-{number}"))
            for number, model in enumerate(self.models)
        )


def build(results: Mapping[str, Any]) -> StructuralData | None:
    """Read the neuron graph and the curves of single weights beside it.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without a graph.
    """
    study = results.get("study") or {}
    clusters = tuple(study.get("structural") or [])
    if not clusters:
        return None
    intact = {(row["model"], row["task"]): row for row in study.get("intact") or []}
    kept: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in study.get("curves") or []:
        whole = intact[row["model"], row["on"]]
        own = row["level"] == "weight" and row["by"] in {row["on"], ""}
        if own and whole["outcome"] == "ok":
            loss = text.number(row["loss"])
            room = whole["uninformed"] - whole["loss"]
            left = 0.0 if loss is None else (whole["uninformed"] - loss) / room
            place = (row["model"], row["on"], row["order"])
            kept.setdefault(place, []).append((row["fraction"], min(max(left, 0.0), 1.0)))
    midpoints = {
        (row["model"], row["on"], row["order"]): float(row["value"])
        for row in study.get("thresholds") or []
        if row["level"] == "weight"
        and row["by"] in {row["on"], ""}
        and row["quantity"] == "midpoint"
        and text.number(row["value"]) is not None
    }
    return StructuralData(
        tuple(dict.fromkeys(row["model"] for row in clusters)),
        tuple(dict.fromkeys(task for _, task in intact)),
        clusters,
        tuple(study.get("structure") or []),
        kept,
        midpoints,
    )


def _draw(data: StructuralData, model: str, name: str) -> Any:
    with canvas.style(name):
        panels = Panels(data.tasks)
        figure = panels.figure()
        sheet = canvas.add_sheet(figure)
        looks = palette.series(ORDERS)
        entries = [
            (f"{what}, {ORDER_NAMES[order]} order", looks[order].color, style)
            for order in _SHOWN
            for what, style in (("function", "-"), ("largest cluster", _DASHES))
        ]
        legend(sheet, entries)
        for task, axes, leftmost in panels.place(figure, sheet):
            for order in _SHOWN:
                _curves(axes, data, (model, task, order), looks[order].color)
            smallest = [f for o in _SHOWN for f, _ in data.kept.get((model, task, o), []) if f]
            dress(axes, min(smallest, default=1e-4))
            axes.set_ylim(-0.03, 1.05)
            axes.set_xlabel("fraction of weights, of bonds removed")
            if leftmost:
                axes.set_ylabel("part that is left")
            axes.grid(True)
            axes.set_axisbelow(True)
        label = f"Function and graph of {model}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label)


def _curves(axes: Axes, data: StructuralData, place: tuple[str, str, str], color: str) -> None:
    model, task, order = place
    kept = sorted(data.kept.get(place, []))
    axes.plot([across(f) for f, _ in kept], [y for _, y in kept], color=color, linewidth=2)
    graph = sorted(
        (row["fraction"], row["giant"])
        for row in data.clusters
        if (row["model"], row["order"]) == (model, order) and row["by"] in {task, ""}
    )
    axes.plot(
        [across(f) for f, _ in graph], [y for _, y in graph], color=color, linewidth=2,
        linestyle=_DASHES,
    )  # fmt: skip
    for quantity, marker in (("spanning", "^"), ("molloy_reed", "s")):
        for row in data.marks:
            own = (row["model"], row["order"], row["quantity"]) == (model, order, quantity)
            if own and row["by"] in {task, ""} and text.number(row["value"]) is not None:
                axes.plot([across(row["value"])], [0.02], marker=marker, markersize=8, color=color,
                          markeredgecolor=palette.CARD, zorder=4)  # fmt: skip


FIGURE = FigureSpec(
    "structural",
    "The graph of neurons beside the function",
    build,
    lambda results: "There is no graph of neurons; see the notes.",
)
