"""Where the Fisher sits: layer × module, one panel per task, one scale for all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.figures.canvas import Box
from fisherscope.report.figures.cells import Cell, named, pool, total
from fisherscope.report.figures.grid import Grid, Layout
from fisherscope.report.tables import Column, Table

# Tooltips of more cells than that would make up most of the page; the table has them all.
_MOST_TOOLTIPS = 2500


@dataclass(frozen=True)
class HeatmapData:
    """Cells of the layer × module map.

    Attributes:
        tasks: Task names in page order, one panel each.
        grid: Layers and modules.
        cells: Every cell with parameters.
        unit: What the mean is taken over.
    """

    tasks: tuple[str, ...]
    grid: Grid
    cells: tuple[Cell, ...]
    unit: str

    def scale(self) -> tuple[float, float] | None:
        """Shared colour scale: the range inside the layers, or of all cells without layers.

        Returns:
            Lowest and highest log10 mean; None without any positive cell.
        """
        inside = [c for c in self.cells if c.layer is not None] or self.cells
        values = [c.log10 for c in inside if c.log10 is not None]
        values = values or [c.log10 for c in self.cells if c.log10 is not None]
        if not values:
            return None
        low, high = min(values), max(values)
        return (low, high) if high - low > 0.1 else (low - 0.05, high + 0.05)

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        known = [c for c in self.cells if c.mean is not None]
        # A norm has few parameters that every token shares, so it would nearly always win.
        ranked = [c for c in known if c.module != "norm"] or known
        if ranked:
            best = max(ranked, key=lambda c: c.mean or 0.0)
            aside = "Norms aside, parameters" if len(ranked) < len(known) else "Parameters"
            value = text.plus_minus(best.mean, best.mean_se)
            parts.append(
                f"{aside} matter most, on average, in {best.place} for {text.spoken(best.task)}: "
                f"mean Fisher {value} per parameter"
            )
        shares: dict[tuple[str, str], list[Cell]] = defaultdict(list)
        for cell in self.cells:
            if cell.share is not None:
                shares[cell.task, cell.module].append(cell)
        totals = {key: sum(c.share or 0.0 for c in group) for key, group in shares.items()}
        if totals:
            task, module = max(totals, key=lambda key: totals[key])
            error = total(cell.share_se for cell in shares[task, module])
            held = text.percent(totals[task, module], error)
            parts.append(f"{named(module)} holds {held} of the trace for {text.spoken(task)}")
        doubtful = sum(not c.reliable for c in self.cells)
        parts.append(
            f"{doubtful:,} of {text.plural(len(self.cells), 'cell')} "
            f"{'is' if doubtful == 1 else 'are'} too uncertain to rank (hatched)"
        )
        return "; ".join(parts) + "."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        rows = (
            "Each panel is a task, each row a layer (0 is next to the input), each column a "
            "module; bars above and below are what lies outside the layers. "
            if self.grid.layers
            else "Each panel is a task, each row a module. "
        )
        beyond = (
            "Bars outside the layers may exceed the scale, so they carry their number unless "
            "hatched. "
            if self.grid.layers
            else ""
        )
        hover = "Hover for values. " if len(self.cells) <= _MOST_TOOLTIPS else ""
        return (
            f"{rows}Brighter is larger, on one scale for all panels: one step of the scale bar is "
            f"a factor of ten in the mean Fisher per parameter (mean per {self.unit}), so modules "
            f"of different size can be compared. {beyond}Hatched: the relative standard error is "
            f"too large to trust the rank. 0: no score ever reached the cell. {hover}The second "
            "tab shows each cell's share of its task's trace, which also grows with the number of "
            "parameters."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per cell.
        """
        columns = (
            Column("task", "Task", "text"),
            Column("layer", "Layer", "integer"),
            Column("module", "Module", "text"),
            Column("n_parameters", "Parameters", "integer"),
            Column("mean", "Mean Fisher", "number", f"Per parameter, mean per {self.unit}"),
            Column("mean_se", "±", "number", "Standard error; an upper bound for several tensors"),
            Column("relative_se", "Relative ±", "percent"),
            Column("share", "Share of trace", "percent"),
            Column("share_se", "±", "percent", "Standard error of the share"),
            Column("reliable", "Reliable", "flag"),
        )
        names = [column.key for column in columns]
        rows = tuple({name: getattr(cell, name) for name in names} for cell in self.cells)
        return Table(columns, rows, "Mean Fisher per parameter and share of the trace, by module")

    def views(self) -> tuple[View, ...]:
        """Draw both tabs.

        Returns:
            Mean per parameter, and share of the trace where it is known.
        """
        drawn = [View("Mean per parameter", _draw(self, "mean"))]
        if any(c.share is not None for c in self.cells):
            drawn.append(View("Share of trace", _draw(self, "share")))
        return tuple(drawn)


def build(results: Mapping[str, Any]) -> HeatmapData | None:
    """Gather tensors into cells.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without any mean.
    """
    groups: dict[tuple[str, int | None, str], list[Mapping[str, Any]]] = defaultdict(list)
    for task, rows in (results.get("importance") or {}).items():
        for row in rows:
            layer = None if row.get("layer") is None else int(row["layer"])
            groups[task, layer, str(row.get("module") or row.get("tensor"))].append(row)
    if all(text.number(row.get("mean")) is None for rows in groups.values() for row in rows):
        return None
    found = {task for task, _, _ in groups}
    tasks = [name for name in palette.task_names(results, *found) if name in found]
    grid = Grid.of((layer, module) for _, layer, module in groups)
    order = sorted(groups, key=lambda key: (tasks.index(key[0]), *grid.rank(key[1:])))
    unit = str((results.get("settings") or {}).get("unit") or "unit")
    return HeatmapData(tuple(tasks), grid, tuple(pool(*key, groups[key]) for key in order), unit)


def _draw(data: HeatmapData, quantity: str) -> Any:
    name = f"importance-{quantity}"
    with canvas.style(name):
        layout = Layout.of(data.grid, len(data.tasks))
        figure = canvas.new_figure(layout.height)
        sheet = canvas.add_sheet(figure)
        span = data.scale() if quantity == "mean" else _share_span(data)
        _scale_bar(sheet, data, span, quantity)
        looks = palette.series(data.tasks)
        shown = layout.titles(data.tasks)
        hover: dict[str, list[str]] = {}
        for i, task in enumerate(data.tasks):
            corner = layout.corner(i)
            cells = [c for c in data.cells if c.task == task]
            if len(data.cells) <= _MOST_TOOLTIPS:
                hover[f"cells-{i}"] = [_tooltip(cell) for cell in cells]
            boxes = [layout.box((cell.layer, cell.module), *corner) for cell in cells]
            fills = [_fill(cell, span, quantity) for cell in cells]
            edges = {"edgecolors": palette.CARD, "linewidths": 0.7}
            if layout.cell_height < 9:
                edges = {"edgecolors": fills, "linewidths": 0.4}
            canvas.rectangles(sheet, boxes, fills, gid=f"cells-{i}", **edges)
            _marks(sheet, cells, boxes, fills, quantity)
            layout.frame(sheet, i, shown[i], looks[task].color)
        label = f"Heat map of {name.replace('-', ', ')}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label, hover=hover)


def _share_span(data: HeatmapData) -> tuple[float, float] | None:
    known = [c for c in data.cells if c.share is not None]
    inside = [c for c in known if c.layer is not None] or known
    return (0.0, max(c.share or 0.0 for c in inside) or 1.0) if known else None


def _fill(cell: Cell, span: tuple[float, float] | None, quantity: str) -> str:
    value = cell.log10 if quantity == "mean" else cell.share
    if value is None or span is None:
        return palette.GRID
    return palette.sequential((value - span[0]) / (span[1] - span[0]))


def _marks(
    sheet: Axes, cells: list[Cell], boxes: list[Box], fills: list[str], quantity: str
) -> None:
    """Hatching for the doubtful, a zero or a dash where there is no colour."""
    for ink in (palette.ON_LIGHT, palette.ON_DARK):
        doubtful = [
            box
            for cell, box, fill in zip(cells, boxes, fills, strict=True)
            if not cell.reliable and fill != palette.GRID and palette.text_on(fill) == ink
        ]
        canvas.rectangles(sheet, doubtful, "none", hatch="////", edgecolors=ink, alpha=0.75)
    for cell, (x, y, w, h), fill in zip(cells, boxes, fills, strict=True):
        if fill == palette.GRID and h >= 9:
            sign = "0" if cell.mean == 0 and quantity == "mean" else text.MISSING
            canvas.write(sheet, x + w / 2, y + h / 2, sign, ha="center", size=9)
        elif cell.layer is None and cell.reliable:
            label = text.percent(cell.share) if quantity == "share" else text.pretty(cell.mean, 2)
            ink = palette.text_on(fill)
            canvas.write(sheet, x + w / 2, y + h / 2, label, ha="center", size=10, color=ink)


def _tooltip(cell: Cell) -> str:
    trust = "" if cell.reliable else " (too uncertain to rank)"
    return (
        f"{cell.task}, {cell.place}: {text.plus_minus(cell.mean, cell.mean_se)} per parameter"
        f"{trust}, "
        f"{text.percent(cell.share, cell.share_se)} of the trace, "
        f"{text.plural(cell.n_parameters, 'parameter')}"
    )


def _scale_bar(
    sheet: Axes, data: HeatmapData, span: tuple[float, float] | None, quantity: str
) -> None:
    if span is None:
        return
    width, steps, x, y = 250.0, 50, canvas.WIDTH - 275.0, 12.0
    # Each step reaches to the end and the next one covers it: no seams between them.
    boxes = [(x + i * width / steps, y, width - i * width / steps, 10.0) for i in range(steps)]
    canvas.rectangles(sheet, boxes, [palette.sequential(i / (steps - 1)) for i in range(steps)])
    title = (
        f"mean Fisher per parameter (per {data.unit})"
        if quantity == "mean"
        else "share of the trace"
    )
    canvas.write(sheet, x - 12, y + 5, title, ha="right", size=11.5)
    low, high = span
    if quantity == "share":
        ticks = [(low, "0%"), (high / 2, text.percent(high / 2)), (high, text.percent(high))]
    else:
        decades = range(math.ceil(low), math.floor(high) + 1)
        ticks = [(float(d), text.power(d)) for d in decades]
        if len(ticks) < 2:
            ticks = [(v, text.pretty(10**v, 2)) for v in (low, high)]
        ticks = ticks[:: math.ceil(len(ticks) / 6)]
    for value, label in ticks:
        place = (value - low) / (high - low)
        at, side = x + width * place, "right" if place > 0.95 and len(label) > 6 else "center"
        sheet.plot([at, at], [y + 10, y + 13], color=palette.MUTED, linewidth=0.8)
        canvas.write(sheet, at, y + 22, label, ha=side, size=10.5)


FIGURE = FigureSpec(
    "importance",
    "Where the Fisher information sits",
    build,
    lambda results: "The results hold no importance of tensors.",
)
