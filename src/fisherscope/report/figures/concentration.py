"""How few parameters hold how much of the Fisher: mass against top fraction."""

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

TOPS = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Curve:
    """One task's curve.

    Attributes:
        task: Task name.
        fraction: Top fractions of parameters, ascending, above 0.
        mass: Share of the trace that each holds.
        low: Share that the same parameters hold in unseen data, lower of two halves; NaN where
            unknown. It usually lies below the mass, by what sorting takes from noise.
        high: The same, higher of two halves.
        top: Mass at the fractions of :data:`TOPS`; None where unknown.
        participation: Participation ratio (Σf)²/Σf² in parameters, or None.
        n_parameters: Parameters in all, or None where groups are counted instead.
    """

    task: str
    fraction: np.ndarray
    mass: np.ndarray
    low: np.ndarray
    high: np.ndarray
    top: tuple[float | None, ...]
    participation: float | None
    n_parameters: float | None

    def at(self, fraction: float) -> tuple[float | None, float | None, float | None]:
        """Mass and band at one fraction.

        Args:
            fraction: Top fraction of parameters.

        Returns:
            Mass, low and high; None where unknown or outside the curve.
        """
        known = self.top[TOPS.index(fraction)] if fraction in TOPS else None
        values = [self._read(fraction, array) for array in (self.mass, self.low, self.high)]
        return (known if known is not None else values[0]), values[1], values[2]

    def _read(self, fraction: float, array: np.ndarray) -> float | None:
        # In log fraction, where the curve is smooth.
        if not len(self.fraction) or not self.fraction[0] <= fraction <= self.fraction[-1]:
            return None
        return text.number(float(np.interp(np.log(fraction), np.log(self.fraction), array)))


@dataclass(frozen=True)
class ConcentrationData:
    """Curves of all tasks.

    Attributes:
        curves: One per task, in page order.
        order: All task names of the page, which fix the colours.
        noun: What is sorted: ``"parameters"`` or ``"groups"``.
    """

    curves: tuple[Curve, ...]
    order: tuple[str, ...]
    noun: str

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        known = [(c, c.at(0.01)) for c in self.curves]
        known = [(c, v) for c, v in known if v[0] is not None]
        if not known:
            return f"How much of the trace the largest {self.noun} hold."
        known.sort(key=lambda pair: -(pair[1][0] or 0.0))
        words = [
            f"{text.percent(mass)} of the trace for {text.spoken(curve.task)}{_unseen(low, high)}"
            for curve, (mass, low, high) in ([known[0], known[-1]] if len(known) > 1 else known)
        ]
        return f"The top 1% of {self.noun} hold {' and '.join(words)}; spread evenly: 1%."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            f"The {self.noun} are sorted by their Fisher value, largest first; the curve is the "
            "share of the trace held by the top fraction (logarithmic axis). The higher on the "
            f"left, the fewer {self.noun} carry the task. Dashed: spread evenly. Sorting takes "
            "noise for importance, so the curve is too high. The band says by how much: it is what "
            f"the same {self.noun} hold in the half of the data that they were not chosen by, once "
            "for each half. Where curve and band part, read whole modules, or use more examples."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per task and fraction.
        """
        columns = (
            Column("task", "Task", "text"),
            Column("fraction", "Top fraction", "percent"),
            Column("mass", "Share of trace", "percent"),
            Column("low", "Unseen, low", "percent", "In the half of the data not used to sort"),
            Column("high", "Unseen, high", "percent", "In the half of the data not used to sort"),
        )
        rows = []
        for curve in self.curves:
            points = zip(curve.fraction, curve.mass, curve.low, curve.high, strict=True)
            rows += [
                {
                    "task": curve.task,
                    **dict(zip(("fraction", "mass", "low", "high"), p, strict=True)),
                }
                for p in (tuple(map(float, point)) for point in points)
            ]
        return Table(columns, tuple(rows), "Share of the trace held by the top parameters")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Concentration", _draw(self)),)


def build(results: Mapping[str, Any]) -> ConcentrationData | None:
    """Read the curves.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without any curve.
    """
    found = {k: v for k, v in (results.get("concentration") or {}).items() if v}
    order = palette.task_names(results, *found)
    tasks = {task["name"]: task for task in results["tasks"]}
    grouped = (results.get("settings") or {}).get("structure") == "grouped"
    total = None if grouped else text.number((results.get("model") or {}).get("n_parameters"))
    curves = []
    for name in order:
        if name not in found:
            continue
        entry = found[name]
        arrays = {key: _floats(entry.get(key)) for key in ("fraction", "mass", "low", "high")}
        n = min(len(arrays["fraction"]), len(arrays["mass"]))
        for key in ("low", "high"):
            arrays[key] = arrays[key] if len(arrays[key]) == n else np.full(n, np.nan)
        keep = (arrays["fraction"][:n] > 0) & np.isfinite(arrays["mass"][:n])
        arrays = {key: array[:n][keep] for key, array in arrays.items()}
        tops = {float(k): text.number(v) for k, v in (entry.get("top") or {}).items()}
        curves.append(
            Curve(
                name,
                **arrays,
                top=tuple(tops.get(fraction) for fraction in TOPS),
                participation=text.number(tasks.get(name, {}).get("participation")),
                n_parameters=total,
            )
        )
    curves = [curve for curve in curves if len(curve.mass)]
    if not curves:
        return None
    noun = "groups" if grouped else "parameters"
    return ConcentrationData(tuple(curves), tuple(order), noun)


def _floats(values: Any) -> np.ndarray:
    numbers = (text.number(value) for value in values or [])
    return np.array([np.nan if v is None else v for v in numbers], dtype=np.float64)


def _unseen(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return " (unseen data not known: no halves)"
    return f" ({text.percent(low)} to {text.percent(high)} in unseen data)"


def _draw(data: ConcentrationData) -> Any:
    with canvas.style("concentration"):
        height = max(370.0, 70.0 + 24.0 * len(data.curves))
        figure = canvas.new_figure(height)
        axes = canvas.add_axes(figure, (62, 16, 550, min(height, 400.0) - 68))
        looks = palette.series(data.order)
        left = min((c.fraction[0] for c in data.curves if len(c.fraction)), default=1e-3)
        left = float(min(max(left, 1e-6), 1e-2))
        even = np.geomspace(left, 1, 60)
        axes.plot(even, even, color=palette.MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for curve in data.curves:
            look = looks[curve.task]
            if np.isfinite(curve.low).any():
                axes.fill_between(
                    curve.fraction, curve.low, curve.high, color=look.color, alpha=0.2, linewidth=0
                )
            axes.plot(
                curve.fraction, curve.mass, color=look.color, linewidth=2, linestyle=look.linestyle
            )
        axes.set_xscale("log")
        axes.set_xlim(left, 1)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(FixedLocator([10.0**k for k in range(-6, 1)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.6g}%"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}%"))
        axes.set_xlabel(f"top fraction of {data.noun}, by Fisher")
        axes.set_ylabel("share of the trace")
        axes.grid(True)
        axes.set_axisbelow(True)
        _legend(canvas.add_sheet(figure), data, looks)
        label = f"Concentration curves. {data.caption()}"
        return canvas.to_svg(figure, name="concentration", label=label)


def _legend(sheet: Axes, data: ConcentrationData, looks: Mapping[str, palette.Series]) -> None:
    """Names and numbers beside the curves instead of a key to look up."""
    left, stops, y = 650.0, (868.0, 928.0, 988.0, canvas.WIDTH - 6.0), 30.0
    for x, heading in zip(stops, ("top 0.1%", "top 1%", "top 10%", "participation"), strict=True):
        canvas.write(sheet, x, y, heading, ha="right", size=11, color=palette.MUTED)
    sheet.plot([left, canvas.WIDTH - 6], [y + 13, y + 13], color=palette.GRID, linewidth=1)
    shown = dict(zip(data.order, canvas.fit(data.order, 125, 12), strict=True))
    for i, curve in enumerate(data.curves, start=1):
        row = y + 4 + 24 * i
        look = looks[curve.task]
        sheet.plot(
            [left, left + 26], [row, row], color=look.color, linewidth=3, linestyle=look.linestyle
        )  # fmt: skip
        canvas.write(sheet, left + 34, row, shown[curve.task], size=12)
        values = [text.percent(curve.at(fraction)[0]) for fraction in TOPS]
        if curve.participation and curve.n_parameters:
            values.append(text.percent(curve.participation / curve.n_parameters))
        else:
            values.append(text.MISSING)
        for x, value in zip(stops, values, strict=True):
            canvas.write(sheet, x, row, value, ha="right", size=12)
    row = y + 4 + 24 * (len(data.curves) + 1)
    sheet.plot([left, left + 26], [row, row], color=palette.MUTED, linewidth=1.2, dashes=(4, 3))
    canvas.write(sheet, left + 34, row, "spread evenly", size=12, color=palette.MUTED)
    for x, value in zip(stops, ("0.1%", "1%", "10%", "100%"), strict=True):
        canvas.write(sheet, x, row, value, ha="right", size=12, color=palette.MUTED)


FIGURE = FigureSpec(
    "concentration",
    "How concentrated it is",
    build,
    lambda results: "The results hold no concentration curves.",
)
