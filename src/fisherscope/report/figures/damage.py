"""What a step for one task costs another: predicted and measured, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fisherscope.report import text
from fisherscope.report.figures import agreement, canvas, matrix, palette
from fisherscope.report.figures.agreement import Point
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

_NUMBERS = (
    *("step_norm", "first", "second", "diagonal", "n"),
    *("predicted", "predicted_low", "predicted_high"),
    *("measured", "measured_low", "measured_high"),
)


# What is not told apart from no change must not catch the eye.
_FADED = 0.35


@dataclass(frozen=True)
class Damage:
    """Change of one task's loss after a step for another.

    Attributes:
        on: Task whose loss changes.
        by: Task that the step was made for.
        step_norm: Length of the step, or None.
        first: First-order part of the prediction, or None.
        second: Second-order part of the prediction, or None.
        predicted: Predicted change, or None.
        predicted_low: Lower limit, or None.
        predicted_high: Upper limit, or None.
        measured: Measured change, or None.
        measured_low: Lower limit, or None.
        measured_high: Upper limit, or None.
        diagonal: What the stored Fisher alone gives for the second-order part, or None.
        n: Examples that the change was looked at on, or None.
    """

    on: str
    by: str
    step_norm: float | None
    first: float | None
    second: float | None
    predicted: float | None
    predicted_low: float | None
    predicted_high: float | None
    measured: float | None
    measured_low: float | None
    measured_high: float | None
    diagonal: float | None
    n: float | None

    def value(self, kind: str) -> tuple[float | None, float | None, float | None]:
        """Value and interval.

        Args:
            kind: ``"predicted"`` or ``"measured"``.

        Returns:
            Value, lower and upper limit.
        """
        return getattr(self, kind), getattr(self, f"{kind}_low"), getattr(self, f"{kind}_high")

    def known(self) -> tuple[str, ...]:
        """Which of the two there are, the measurement first.

        Returns:
            Kinds for :meth:`value`.
        """
        return tuple(k for k in ("measured", "predicted") if self.value(k)[0] is not None)

    def estimate(self, kind: str) -> tuple[float | None, float | None]:
        """Value and standard error.

        Args:
            kind: ``"predicted"`` or ``"measured"``.

        Returns:
            Value and error; None where missing.
        """
        value, low, high = self.value(kind)
        return value, text.error_of(low, high)

    def clear(self, kind: str) -> bool:
        """Whether the interval excludes no change.

        Args:
            kind: ``"predicted"`` or ``"measured"``.

        Returns:
            False also where there is no interval.
        """
        _, low, high = self.value(kind)
        return low is not None and high is not None and low * high > 0

    def describe(self, kind: str) -> str:
        """Value and interval in words.

        Args:
            kind: ``"predicted"`` or ``"measured"``.

        Returns:
            Text such as ``+0.031 [0.027, 0.035]``.
        """
        value, low, high = self.value(kind)
        sign = "+" if value is not None and value > 0 else ""
        return f"{sign}{text.pretty(value)} {text.interval(low, high)}"


@dataclass(frozen=True)
class DamageData:
    """All cells, and how well prediction met reality.

    Attributes:
        tasks: All task names of the page, which fix the colours.
        names: Tasks in the matrix.
        cells: Every cell.
        unit: Unit of the changes.
        definition: What the step is, in the words of the run.
    """

    tasks: tuple[str, ...]
    names: tuple[str, ...]
    cells: tuple[Damage, ...]
    unit: str
    definition: str

    def both(self) -> list[Damage]:
        """Cells that are predicted and measured.

        Returns:
            The cells.
        """
        return [c for c in self.cells if c.predicted is not None and c.measured is not None]

    def correlation(self) -> tuple[float | None, float | None]:
        """Pearson correlation of predicted and measured, with its standard error.

        Cells of one step share the step, so the jackknife leaves out whole steps.

        Returns:
            Correlation, None below three cells; standard error, None below three steps.
        """
        cells = self.both()
        whole = _pearson(cells)
        steps = sorted({cell.by for cell in cells})
        if whole is None or len(steps) < 3:
            return whole, None
        left = [_pearson([cell for cell in cells if cell.by != step]) for step in steps]
        known = np.array([r for r in left if r is not None])
        if len(known) < len(steps):
            return whole, None
        n = len(known)
        return whole, float(np.sqrt((n - 1) / n * ((known - known.mean()) ** 2).sum()))

    def signs(self) -> tuple[int, int]:
        """Right signs among the cells whose measured interval excludes no change.

        Returns:
            How many right, of how many.
        """
        clear = [cell for cell in self.both() if cell.clear("measured")]
        right = [c for c in clear if (c.predicted or 0.0) * (c.measured or 0.0) > 0]
        return len(right), len(clear)

    def caught(self) -> float | None:
        """How much of the second order the stored Fisher gives.

        Returns:
            Median over cells of its part over the full form; None without any.
        """
        ratios = [c.diagonal / c.second for c in self.cells if c.diagonal is not None and c.second]
        return float(np.median(ratios)) if ratios else None

    def worst(self) -> Damage | None:
        """The largest harm to another task, as measured, or as predicted if none was measured.

        Returns:
            The cell; None without any.
        """
        others = [cell for cell in self.cells if cell.on != cell.by]
        for kind in ("measured", "predicted"):
            known = [cell for cell in others if cell.value(kind)[0] is not None]
            if known:
                return max(known, key=lambda cell: cell.value(kind)[0] or 0.0)
        return None

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        worst = self.worst()
        if worst is None:
            parts = [
                f"A step for {text.spoken(c.by)} changes its own loss by "
                + ", ".join(f"{c.describe(k)} {self.unit} {k}" for k in c.known())
                for c in self.cells[:1]
            ]
        else:
            kind = "measured" if worst.measured is not None else "predicted"
            numbers = [f"{worst.describe(each)} {self.unit} {each}" for each in worst.known()]
            harm = (worst.value(kind)[0] or 0.0) > 0
            lead = "The largest harm is" if harm else "No step harms another task; the nearest is"
            parts.append(
                f"{lead} to {text.spoken(worst.on)} by a step for "
                f"{text.spoken(worst.by)}: {', '.join(numbers)}"
                + ("" if worst.clear(kind) else ", not told apart from none")
            )
        r, error = self.correlation()
        if r is not None:
            right, clear = self.signs()
            parts.append(
                f"over {text.plural(len(self.both()), 'cell')} prediction and measurement "
                f"correlate at {text.plus_minus(r, error)}, with the right sign in {right} of "
                f"{clear} clear ones"
            )
        caught = self.caught()
        if caught is not None:
            parts.append(
                f"the stored Fisher alone gives a median of {text.percent(caught)} of the second "
                "order"
            )
        return "; ".join(parts) + "." if parts else "No damage could be compared."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        definition = self.definition.strip().rstrip(".")
        return (
            (f"{definition}. " if definition else "")
            + "Rows: the task whose loss changes; columns: the task that the step is for. Red is "
            "harm, blue is help, pale is little, both matrices on one scale, each number with its "
            "standard error; hatched and faded: the 95% interval includes no change. The diagonal "
            "is what the step does for its own task. The scatter shows each cell once, prediction "
            "across and measurement up, with 95% intervals, coloured by the task whose loss "
            "changes; on the dashed line they agree. Open diamonds are the diagonal cells. Far "
            "from the line, the step is too long for the quadratic picture, or the estimate is "
            "too noisy."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per cell.
        """
        columns = (
            Column("on", "Loss of", "text"),
            Column("by", "Step for", "text"),
            Column("step_norm", "Step length", "number", "Euclidean length of the step"),
            Column("first", "First order", "number", "gᵀδ"),
            Column("second", "Second order", "number", "½ δᵀFδ, full form"),
            Column("diagonal", "Stored Fisher", "number", "½ δᵀFδ as the stored Fisher gives it"),
            Column("predicted", "Predicted", "number", self.unit),
            Column("predicted_low", "Low", "number", "Of the prediction"),
            Column("predicted_high", "High", "number", "Of the prediction"),
            Column("measured", "Measured", "number", self.unit),
            Column("measured_low", "Low", "number", "Of the measurement"),
            Column("measured_high", "High", "number", "Of the measurement"),
            Column("n", "n", "integer", "Examples"),
        )
        return Table(columns, tuple(vars(c) for c in self.cells), f"Damage, {self.unit}")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Damage", _draw(self)),)


def _pearson(cells: Sequence[Damage]) -> float | None:
    if len(cells) < 3:
        return None
    x = np.array([cell.predicted for cell in cells], dtype=np.float64)
    y = np.array([cell.measured for cell in cells], dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def build(results: Mapping[str, Any]) -> DamageData | None:
    """Read the cells.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without any predicted or measured cell.
    """
    damage = results.get("damage") or {}
    cells = tuple(
        Damage(row["on"], row["by"], **{key: text.number(row.get(key)) for key in _NUMBERS})
        for row in damage.get("cells") or []
    )
    if not any(cell.predicted is not None or cell.measured is not None for cell in cells):
        return None
    involved = list(dict.fromkeys(name for cell in cells for name in (cell.on, cell.by)))
    tasks = palette.task_names(results, *involved)
    units = [row.get("unit") for row in damage["cells"] if row.get("unit")]
    return DamageData(
        tuple(tasks),
        tuple(name for name in tasks if name in involved),
        cells,
        str(units[0]) if units else "nats",
        str(damage.get("definition") or ""),
    )


def _draw(data: DamageData) -> Any:
    with canvas.style("damage"):
        n, top = len(data.names), 56.0
        left = matrix.label_width(data.names) + 22
        beside = n <= 5 and canvas.WIDTH - left - 2 * min(64.0 * n, 330.0) >= 400
        cell = min(64.0, (330.0 if beside else (canvas.WIDTH - left - 40) / 2) / n)
        side, below = cell * n, matrix.label_height(data.names)
        second = left + side + 30
        plot = (
            (second + side + 92, top, 0.0, 0.0)
            if beside
            else (left + 40, top + side + below + 90, 0, 0)
        )
        room = min(380.0, canvas.WIDTH - plot[0] - 14) if beside else 400.0
        plot = (plot[0], plot[1], room, room)
        height = max(top + side + below + 24, plot[1] + room + 54)
        figure = canvas.new_figure(height)
        sheet = canvas.add_sheet(figure)
        looks = palette.series(data.tasks)
        largest = max(
            abs(v) for c in data.cells for v in (c.predicted, c.measured) if v is not None
        )
        scale = 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0
        unit = data.unit if scale == 0 else f"{text.power(scale)} {data.unit}"
        hover = {}
        for kind, x in (("predicted", left), ("measured", second)):
            canvas.write(sheet, x, 18, kind.capitalize(), size=14, weight="bold")
            canvas.write(sheet, x, 38, unit, size=11, color=palette.MUTED)
            hover[kind] = matrix.draw(
                sheet, _entries(data, kind, largest, scale), data.names, looks,
                left=x, top=top, cell=cell, gid=kind, rows=kind == "predicted",
            )  # fmt: skip
            canvas.write(
                sheet, x + side / 2, top + side + below + 10, "step for", ha="center",
                size=11, color=palette.MUTED,
            )  # fmt: skip
        canvas.write(
            sheet, 10, top + side / 2, "loss of", ha="center", size=11, rotation=90,
            color=palette.MUTED,
        )  # fmt: skip
        if data.both():
            canvas.write(
                sheet, plot[0], plot[1] - 38, "Predicted against measured", size=14, weight="bold"
            )
            axes = canvas.add_axes(figure, plot)
            hover["points"] = agreement.draw(axes, _points(data, looks, 10.0**scale), "points")
            axes.set_xlabel(f"predicted, {unit}")
            axes.set_ylabel(f"measured, {unit}")
        label = f"Predicted and measured damage. {data.caption()}"
        return canvas.to_svg(figure, name="damage", label=label, hover=hover)


def _entries(
    data: DamageData, kind: str, largest: float, scale: int
) -> dict[tuple[str, str], matrix.Entry]:
    entries = {}
    top = largest / 10.0**scale
    places = 2 if top < 10 else 1 if top < 100 else 0
    for cell in data.cells:
        value, low, high = cell.value(kind)
        tooltip = f"{cell.on} after a step for {cell.by}: {cell.describe(kind)} {data.unit} {kind}"
        if value is None:
            entries[cell.on, cell.by] = matrix.Entry(text.MISSING, "", palette.GRID, tooltip)
            continue
        error = text.error_of(low, high)
        small = "" if error is None else f"±{_fixed(error / 10.0**scale, places)}"
        main = _fixed(value / 10.0**scale, places)
        main = f"+{main}" if value > 0 else main
        doubtful = error is not None and not cell.clear(kind)
        strength = value / largest if largest else 0.0
        fill = palette.signed(_FADED * strength if doubtful else strength)
        entries[cell.on, cell.by] = matrix.Entry(main, small, fill, tooltip, doubtful)
    return entries


def _fixed(value: float, places: int) -> str:
    return f"{value:.{places}f}".replace("-", "\u2212")


def _points(data: DamageData, looks: Mapping[str, palette.Series], unit: float) -> list[Point]:
    points = []
    for cell in data.both():
        across, up = (
            tuple(None if v is None else v / unit for v in cell.value(kind))
            for kind in ("predicted", "measured")
        )
        tooltip = (
            f"{cell.on} after a step for {cell.by}: {cell.describe('predicted')} predicted, "
            f"{cell.describe('measured')} measured, {data.unit}"
        )
        points.append(Point(across, up, looks[cell.on].color, cell.on == cell.by, tooltip))
    return points


FIGURE = FigureSpec(
    "damage",
    "What a step for one task costs another",
    build,
    lambda results: str(
        (results.get("damage") or {}).get("definition")
        or "The run did not predict or measure damage."
    ),
)
