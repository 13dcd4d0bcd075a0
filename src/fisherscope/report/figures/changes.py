"""How models differ from the first one, task by task: changes with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

_ROW, _TOP, _BOTTOM = 24.0, 34.0, 46.0
_RESOLVED = {"higher", "lower"}


@dataclass(frozen=True)
class Change:
    """One quantity of one task, of another model against the reference.

    Attributes:
        task: Task name.
        model: The other model.
        quantity: ``"loss"``, ``"trace"`` or ``"damage by TASK"``.
        reference: Value of the reference.
        value: Value of the other model.
        change: Difference, or log2 of the ratio of traces.
        low: Lower limit of its 95% interval, or None.
        high: Upper limit, or None.
        unit: Unit of the values.
        outcome: What the interval says.
    """

    task: str
    model: str
    quantity: str
    reference: float | None
    value: float | None
    change: float | None
    low: float | None
    high: float | None
    unit: str
    outcome: str

    @property
    def kind(self) -> str:
        """Which of the tabs it belongs to.

        Returns:
            ``"loss"``, ``"trace"`` or ``"damage"``.
        """
        return self.quantity.partition(" ")[0]

    @property
    def place(self) -> str:
        """What changes, in words.

        Returns:
            The task, for damage with the task that steps.
        """
        by = self.quantity.removeprefix("damage by ")
        return f"{self.task} ← {by}" if self.kind == "damage" else self.task


@dataclass(frozen=True)
class ChangesData:
    """All changes that have an interval.

    Attributes:
        reference: Name of the first model.
        models: The other models, which fix the colours.
        rows: Changes, the loss first.
    """

    reference: str
    models: tuple[str, ...]
    rows: tuple[Change, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        sure = [row for row in self.rows if row.outcome in _RESOLVED]
        told = f"{len(sure)} of {text.plural(len(self.rows), 'difference')} "
        told += f"{'is' if len(sure) == 1 else 'are'} resolved"
        losses = [row for row in sure if row.kind == "loss" and row.change is not None]
        if not losses:
            return f"{told}."
        most = max(losses, key=lambda row: abs(row.change or 0.0))
        way = "higher" if (most.change or 0.0) > 0 else "lower"
        size = text.plus_minus(abs(most.change or 0.0), text.error_of(most.low, most.high))
        return (
            f"{told}; the largest in loss: {text.spoken(most.model)} is {size} {most.unit} {way} "
            f"than {text.spoken(self.reference)} on {text.spoken(most.task)}."
        )

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            f"Each dot is another model against {self.reference}, which is the line at zero; bars "
            "are 95% bootstrap intervals over examples. Where both models saw the same examples "
            "they are resampled together. Open dots: the interval holds zero, so the difference "
            "is not resolved. Loss: nats per token. Trace: log2 of the ratio, +1 is twice as "
            "large. Damage (task ← by): how much more the loss of the task rises after the "
            "other model's own step for the second task; both steps go the same fraction of what "
            "each model likes best, so they differ in length."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per change.
        """
        columns = (
            Column("task", "Task", "text"),
            Column("model", "Model", "text"),
            Column("quantity", "Quantity", "text"),
            Column("reference", f"{self.reference}", "number"),
            Column("value", "Value", "number"),
            Column("change", "Change", "number", "Difference; of traces log2 of the ratio"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("unit", "Unit", "text"),
            Column("outcome", "Outcome", "text"),
        )
        return Table(columns, tuple(vars(row) for row in self.rows), "Differences between models")

    def views(self) -> tuple[View, ...]:
        """Draw a tab for each kind of quantity.

        Returns:
            Loss, trace and damage, as far as they are known.
        """
        titles = {
            "loss": ("Loss", "difference in loss, nats per token"),
            "trace": ("Fisher trace", "log2 of the ratio of traces"),
            "damage": ("Damage", "difference in measured damage, nats per token"),
        }
        drawn = []
        for kind, (label, axis) in titles.items():
            rows = [row for row in self.rows if row.kind == kind]
            if rows:
                drawn.append(View(label, _draw(self, rows, f"changes-{kind}", axis)))
        return tuple(drawn)


def build(results: Mapping[str, Any]) -> ChangesData | None:
    """Gather the changes.

    Args:
        results: The content of a comparison's ``results.json``.

    Returns:
        The figure's data; None without any interval.
    """
    rows = []
    for row in results.get("table") or []:
        numbers = {
            key: text.number(row.get(key))
            for key in ("reference", "value", "change", "low", "high")
        }
        if numbers["low"] is None or numbers["high"] is None or numbers["change"] is None:
            continue
        rows.append(
            Change(
                task=str(row.get("task")),
                model=str(row.get("model")),
                quantity=str(row.get("quantity")),
                unit=str(row.get("unit") or ""),
                outcome=str(row.get("outcome") or ""),
                **numbers,
            )
        )
    order = {"loss": 0, "trace": 1, "damage": 2}
    rows.sort(key=lambda row: order.get(row.kind, 3))
    models = tuple(dict.fromkeys(row.model for row in rows))
    return ChangesData(str(results["reference"]), models, tuple(rows)) if rows else None


def _draw(data: ChangesData, rows: list[Change], name: str, axis: str) -> Any:
    places = list(dict.fromkeys(row.place for row in rows))
    step = _ROW * max(1.0, 0.6 * len(data.models))
    with canvas.style(name):
        shown = dict(zip(places, canvas.fit(places, 220, 12), strict=True))
        left = 20 + max(canvas.extent(label, 12) for label in shown.values())
        height = len(places) * step
        figure = canvas.new_figure(_TOP + height + _BOTTOM)
        axes = canvas.add_axes(figure, (left, _TOP, canvas.WIDTH - left - 24, height))
        _legend(canvas.add_sheet(figure), data, left)
        tooltips = _dots(axes, data, rows, places, "dots")
        axes.axvline(0, color=palette.MUTED, linewidth=1, zorder=0)
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.set_yticks(range(len(places)), [shown[place] for place in places])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.pretty(x, 3)))
        axes.set_xlabel(axis)
        label = f"{axis}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label, hover={"dots": tooltips})


def _dots(
    axes: Axes, data: ChangesData, rows: list[Change], places: list[str], gid: str
) -> list[str]:
    looks = palette.series(data.models)
    spread = 0.5 / max(1, len(data.models))
    xs, ys, fills, edges, tooltips = [], [], [], [], []
    for row in rows:
        at = data.models.index(row.model) - (len(data.models) - 1) / 2
        y = places.index(row.place) + at * spread
        color = looks[row.model].color
        ends = [row.low or 0.0, row.high or 0.0]  # both known, or it would not be here
        axes.plot(ends, [y, y], color=color, linewidth=1.8, zorder=2)
        xs.append(row.change)
        ys.append(y)
        fills.append(color if row.outcome in _RESOLVED else palette.CARD)
        edges.append(color)
        tooltips.append(
            f"{row.place}, {row.model}: {text.pretty(row.change)} "
            f"{text.interval(row.low, row.high)} {row.unit}, {row.outcome}"
        )
    axes.scatter(
        xs, ys, s=46, c=fills, edgecolors=edges, linewidths=1.6, zorder=3, gid=gid, clip_on=False
    )
    return tooltips


def _legend(sheet: Axes, data: ChangesData, left: float) -> None:
    looks = palette.series(data.models)
    x = left
    for name, label in zip(data.models, canvas.fit(data.models, 160, 12), strict=True):
        canvas.rectangles(sheet, [(x, 9, 10, 10)], looks[name].color)
        canvas.write(sheet, x + 16, 14, label, size=12)
        x += 36 + canvas.extent(label, 12)
    canvas.write(sheet, x + 8, 14, f"against {data.reference}", size=12, color=palette.MUTED)


FIGURE = FigureSpec(
    "changes",
    "What differs between the models",
    build,
    lambda results: "No difference has an interval: give the tasks at least two examples.",
)
