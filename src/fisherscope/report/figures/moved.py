"""Where the Fisher has grown or shrunk between two models: layer × module, by task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.figures.cells import named
from fisherscope.report.figures.grid import Grid, Layout
from fisherscope.report.tables import Column, Table

_MOST_TOOLTIPS = 2500


@dataclass(frozen=True)
class Moved:
    """One module in one layer: the ratio of its traces.

    Attributes:
        task: Task name.
        model: The other model.
        layer: Layer index; None outside the layers.
        module: Module name.
        log2_ratio: log2 of the ratio, or None.
        low: Lower limit of its 95% interval, or None.
        high: Upper limit, or None.
    """

    task: str
    model: str
    layer: int | None
    module: str
    log2_ratio: float | None
    low: float | None
    high: float | None

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves zero out.

        Returns:
            False also without an interval.
        """
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def place(self) -> str:
        """The cell in words.

        Returns:
            Text such as ``layer 3 q_proj``.
        """
        module = named(self.module)
        return module if self.layer is None else f"layer {self.layer} {module}"


@dataclass(frozen=True)
class MovedData:
    """Ratios of all cells.

    Attributes:
        reference: Name of the first model.
        panels: Model and task of each panel.
        grid: Layers and modules.
        cells: All cells.
    """

    reference: str
    panels: tuple[tuple[str, str], ...]
    grid: Grid
    cells: tuple[Moved, ...]

    def span(self) -> float:
        """The colour scale's end, equal on both sides.

        Returns:
            Largest absolute log2 ratio of a resolved cell, at least 0.5.
        """
        known = [abs(c.log2_ratio) for c in self.cells if c.log2_ratio is not None and c.resolved]
        return max([0.5, *known])

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        sure = [c for c in self.cells if c.resolved and c.log2_ratio is not None]
        open_ = len(self.cells) - len(sure)
        rest = f"{open_:,} of {text.plural(len(self.cells), 'cell')} not resolved (hatched)."
        if not sure:
            return f"No cell has changed beyond its interval; {rest}"
        most = max(sure, key=lambda c: abs(c.log2_ratio or 0.0))
        times = 2 ** (most.log2_ratio or 0.0)
        way = f"{text.pretty(times, 2)} times"
        return (
            f"The largest change is in {most.place} for {text.spoken(most.task)}: the Fisher trace "
            f"of {text.spoken(most.model)} is {way} that of {text.spoken(self.reference)}; {rest}"
        )

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each panel is a task of another model, each row a layer, each column a module. Red: "
            f"the trace is larger than in {self.reference}, blue: smaller; one unit is a factor of "
            "two. Hatched: the 95% interval over examples holds one. A larger trace means that the "
            "log-probability depends more sharply on these weights, not that they do more."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per cell.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("task", "Task", "text"),
            Column("layer", "Layer", "integer"),
            Column("module", "Module", "text"),
            Column("log2_ratio", "log2 ratio", "number"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("resolved", "Resolved", "flag"),
        )
        rows = tuple({**vars(cell), "resolved": cell.resolved} for cell in self.cells)
        return Table(columns, rows, "Ratio of the traces of each module")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Ratio of traces", _draw(self)),)


def build(results: Mapping[str, Any]) -> MovedData | None:
    """Gather tensors into cells.

    Args:
        results: The content of a comparison's ``results.json``.

    Returns:
        The figure's data; None where the models have other parameters.
    """
    cells = []
    for row in results.get("modules") or []:
        layer = text.number(row.get("layer"))
        numbers = {key: text.number(row.get(key)) for key in ("log2_ratio", "low", "high")}
        cells.append(
            Moved(
                task=str(row.get("task")),
                model=str(row.get("model")),
                layer=None if layer is None else int(layer),
                module=str(row.get("module")),
                **numbers,
            )
        )
    if not cells:
        return None
    panels = tuple(dict.fromkeys((cell.model, cell.task) for cell in cells))
    grid = Grid.of((cell.layer, cell.module) for cell in cells)
    cells.sort(key=lambda c: (panels.index((c.model, c.task)), *grid.rank((c.layer, c.module))))
    return MovedData(str(results["reference"]), panels, grid, tuple(cells))


def _draw(data: MovedData) -> Any:
    with canvas.style("moved"):
        layout = Layout.of(data.grid, len(data.panels))
        figure = canvas.new_figure(layout.height)
        sheet = canvas.add_sheet(figure)
        span = data.span()
        _scale_bar(sheet, data, span)
        several = len({model for model, _ in data.panels}) > 1
        names = [f"{model}: {task}" if several else task for model, task in data.panels]
        tasks = list(dict.fromkeys(task for _, task in data.panels))
        looks = palette.series(tasks)
        hover: dict[str, list[str]] = {}
        for i, (title, panel) in enumerate(zip(layout.titles(names), data.panels, strict=True)):
            cells = [c for c in data.cells if (c.model, c.task) == panel]
            boxes = [layout.box((c.layer, c.module), *layout.corner(i)) for c in cells]
            fills = [palette.signed((c.log2_ratio or 0.0) / span) for c in cells]
            canvas.rectangles(
                sheet, boxes, fills, gid=f"cells-{i}", edgecolors=palette.CARD, linewidths=0.7
            )
            open_ = [box for box, c in zip(boxes, cells, strict=True) if not c.resolved]
            canvas.rectangles(
                sheet, open_, "none", hatch="////", edgecolors=palette.MUTED, alpha=0.5
            )
            if len(data.cells) <= _MOST_TOOLTIPS:
                hover[f"cells-{i}"] = [_tooltip(cell) for cell in cells]
            layout.frame(sheet, i, title, looks[panel[1]].color)
        label = f"Heat map of changes. {data.caption()}"
        return canvas.to_svg(figure, name="moved", label=label, hover=hover)


def _tooltip(cell: Moved) -> str:
    ratio = text.pretty(cell.log2_ratio) if cell.log2_ratio is not None else text.MISSING
    return (
        f"{cell.model}, {cell.task}, {cell.place}: log2 ratio {ratio} "
        f"{text.interval(cell.low, cell.high)}"
    )


def _scale_bar(sheet: Axes, data: MovedData, span: float) -> None:
    width, steps, x, y = 250.0, 50, canvas.WIDTH - 275.0, 12.0
    each = width / steps
    boxes = [(x + i * each, y, each, 10.0) for i in range(steps)]
    colors = [palette.signed(2 * (i + 0.5) / steps - 1) for i in range(steps)]
    canvas.rectangles(sheet, boxes, colors)
    title = f"Fisher trace as a multiple of that of {data.reference}"
    canvas.write(sheet, x - 12, y + 5, title, ha="right", size=11.5)
    whole = max(1, math.floor(span))
    ticks = (-whole, 0, whole) if span >= 1 else (-0.5, 0, 0.5)
    for value in ticks:
        at = x + width * (value / span + 1) / 2
        sheet.plot([at, at], [y + 10, y + 13], color=palette.MUTED, linewidth=0.8)
        label = f"×{text.pretty(2.0**value, 2)}"
        canvas.write(sheet, at, y + 22, label, ha="center", size=10.5)


FIGURE = FigureSpec(
    "moved",
    "Where the Fisher has grown or shrunk",
    build,
    lambda results: "The models have other parameters, so there is no tensor to compare.",
)
