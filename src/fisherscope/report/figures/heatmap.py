"""Where the Fisher sits: layer × module, one panel per task, one scale for all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.figures.canvas import Box
from fisherscope.report.figures.cells import Cell, named, pool, total
from fisherscope.report.tables import Column, Table

# Columns in the order of the forward pass; modules not listed come between attention and norms.
_FIRST = (
    *("c_attn", "qkv", "query_key_value", "in_proj", "q_proj", "query", "q"),
    *("k_proj", "key", "k", "v_proj", "value", "v"),
    *("o_proj", "out_proj", "dense", "attn_output"),
    *("gate_proj", "up_proj", "c_fc", "fc1", "dense_h_to_4h", "intermediate"),
    *("down_proj", "c_proj", "fc2", "dense_4h_to_h", "output"),
)
_GAP, _EDGE, _COLUMN_LABEL = 22.0, 6.0, 115.0
# Tooltips of more cells than that would make up most of the page; the table has them all.
_MOST_TOOLTIPS = 2500


@dataclass(frozen=True)
class HeatmapData:
    """Cells of the layer × module map.

    Attributes:
        tasks: Task names in page order, one panel each.
        layers: Layer indices, top to bottom; empty for a model without layers.
        modules: Modules inside layers, left to right.
        above: Modules drawn above the layers (embeddings).
        below: Modules drawn below the layers (final norm, head and whatever else).
        cells: Every cell with parameters.
        unit: What the mean is taken over.
    """

    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    above: tuple[str, ...]
    below: tuple[str, ...]
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
            if self.layers
            else "Each panel is a task, each row a module. "
        )
        beyond = (
            "Bars outside the layers may exceed the scale, so they carry their number unless "
            "hatched. "
            if self.layers
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
    layers = sorted({layer for _, layer, _ in groups if layer is not None})
    modules = _ordered(module for _, layer, module in groups if layer is not None)
    aside = list(dict.fromkeys(module for _, layer, module in groups if layer is None))
    above = [module for module in aside if layers and "emb" in module]
    below = [module for module in aside if module not in above]
    below.sort(key=lambda module: {"norm": 0, "head": 2}.get(module, 1 if layers else 0))
    order = {name: i for i, name in enumerate([*above, *modules, *below])}
    position = {name: i for i, name in enumerate(tasks)}

    def rank(key: tuple[str, int | None, str]) -> tuple[float, ...]:
        task, layer, module = key
        outside = -1.0 if module in above else math.inf
        return position[task], outside if layer is None else layer, order[module]

    cells = tuple(pool(*key, groups[key]) for key in sorted(groups, key=rank))
    unit = str((results.get("settings") or {}).get("unit") or "unit")
    return HeatmapData(
        tuple(tasks), tuple(layers), tuple(modules), tuple(above), tuple(below), cells, unit
    )


def _ordered(names: Iterable[str]) -> list[str]:
    seen = list(dict.fromkeys(names))
    known = {name: i for i, name in enumerate(_FIRST)}
    return sorted(seen, key=lambda n: (n == "norm", known.get(n, len(_FIRST)), seen.index(n)))


@dataclass(frozen=True)
class _Layout:
    """Places in pixels."""

    per_row: int
    cell_width: float
    cell_height: float
    left: float
    top: float
    labels: float
    panel_width: float
    panel_height: float
    row_height: float
    height: float


def _layout(data: HeatmapData) -> _Layout:
    columns = max(1, len(data.modules))
    beside = [*data.above, *data.below, "layer"]
    left = 18 + max(canvas.extent(label, 11) for label in canvas.fit(beside, 140, 11))
    room = canvas.WIDTH - left - 4
    widest = 56.0 if data.layers else 120.0
    smallest = max(100.0, columns * 19.0)
    per_row = max(1, min(len(data.tasks), int((room + _GAP) // (smallest + _GAP))))
    rows = math.ceil(len(data.tasks) / per_row)
    per_row = math.ceil(len(data.tasks) / rows)
    cell_width = min(max(widest, 100.0 / columns), ((room + _GAP) / per_row - _GAP) / columns)
    cell_height = min(26.0, max(6.0, 420.0 / max(1, len(data.layers))))
    aside = 15.0
    blocks = sum(bool(part) for part in (data.above, data.layers, data.below))
    panel_height = (
        len(data.layers) * cell_height
        + (len(data.above) + len(data.below)) * (aside if data.layers else 24.0)
        + (blocks - 1) * _EDGE
    )
    named_below = canvas.fit(data.modules, _COLUMN_LABEL, 10.5)
    longest = max((canvas.extent(label, 10.5) for label in named_below), default=0.0)
    labels = 12 + 0.72 * longest if data.layers else 6.0
    row_height = 30 + panel_height + labels + 10
    top = 52.0
    return _Layout(
        per_row, cell_width, cell_height, left, top, labels,
        columns * cell_width, panel_height, row_height, top + rows * row_height,
    )  # fmt: skip


def _rows(data: HeatmapData, layout: _Layout) -> dict[tuple[int | None, str], tuple[float, float]]:
    # Top and height of each row of a panel; layers under (layer, ""), the rest by module.
    aside = 15.0 if data.layers else 24.0
    places: dict[tuple[int | None, str], tuple[float, float]] = {}
    y = 0.0
    for block in (
        [(None, m) for m in data.above],
        [(layer, "") for layer in data.layers],
        [(None, m) for m in data.below],
    ):
        for layer, module in block:
            height = aside if layer is None else layout.cell_height
            places[layer, module] = (y, height)
            y += height
        y += _EDGE if block else 0.0
    return places


def _draw(data: HeatmapData, quantity: str) -> Any:
    name = f"importance-{quantity}"
    with canvas.style(name):
        layout = _layout(data)
        figure = canvas.new_figure(layout.height)
        sheet = canvas.add_sheet(figure)
        span = data.scale() if quantity == "mean" else _share_span(data)
        _scale_bar(sheet, data, span, quantity)
        places = _rows(data, layout)
        looks = palette.series(data.tasks)
        shown = canvas.fit(data.tasks, layout.panel_width / 1.1, 13)
        hover: dict[str, list[str]] = {}
        for i, task in enumerate(data.tasks):
            x = layout.left + (i % layout.per_row) * (layout.panel_width + _GAP)
            y = layout.top + (i // layout.per_row) * layout.row_height + 30
            canvas.rectangles(sheet, [(x, y - 8, layout.panel_width, 3)], looks[task].color)
            canvas.write(sheet, x, y - 18, shown[i], size=13, weight="bold")
            if i % layout.per_row == 0:
                _row_labels(sheet, data, layout, places, y)
            _column_labels(sheet, data, layout, x, y + layout.panel_height)
            cells = [c for c in data.cells if c.task == task]
            if len(data.cells) <= _MOST_TOOLTIPS:
                hover[f"cells-{i}"] = [_tooltip(cell) for cell in cells]
            boxes = [_box(data, layout, places, cell, x, y) for cell in cells]
            fills = [_fill(cell, span, quantity) for cell in cells]
            edges = {"edgecolors": palette.CARD, "linewidths": 0.7}
            if layout.cell_height < 9:
                edges = {"edgecolors": fills, "linewidths": 0.4}
            canvas.rectangles(sheet, boxes, fills, gid=f"cells-{i}", **edges)
            _marks(sheet, cells, boxes, fills, quantity)
            frames = [(x, y + at, layout.panel_width, tall) for at, tall in _frames(data, places)]
            outline = {"edgecolors": palette.GRID, "linewidths": 0.8}
            canvas.rectangles(sheet, frames, "none", **outline)
        label = f"Heat map of {name.replace('-', ', ')}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label, hover=hover)


def _box(
    data: HeatmapData, layout: _Layout, places: Mapping[Any, Any], cell: Cell, x: float, y: float
) -> Box:
    if cell.layer is None:
        top, height = places[None, cell.module]
        return x, y + top, layout.panel_width, height
    top, height = places[cell.layer, ""]
    column = data.modules.index(cell.module)
    return x + column * layout.cell_width, y + top, layout.cell_width, height


def _frames(data: HeatmapData, places: Mapping[Any, Any]) -> list[tuple[float, float]]:
    # Every block has an outline: the darkest cells would melt into a dark page.
    frames = [places[None, module] for module in (*data.above, *data.below)]
    if data.layers:
        first, last = places[data.layers[0], ""], places[data.layers[-1], ""]
        frames.append((first[0], last[0] + last[1] - first[0]))
    return frames


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


def _row_labels(
    sheet: Axes, data: HeatmapData, layout: _Layout, places: Mapping[Any, Any], y: float
) -> None:
    step = next(
        s for s in (1, 2, 5, 10, 20, 50, 10**9) if s * layout.cell_height >= 13 or s == 10**9
    )
    asides = [*data.above, *data.below]
    shown = dict(zip(asides, canvas.fit(asides, 140, 11), strict=True))
    for (layer, module), (top, height) in places.items():
        if layer is None or layer % step == 0:
            label = shown[module] if layer is None else str(layer)
            where = layout.left - 7
            canvas.write(sheet, where, y + top + height / 2, label, ha="right", size=11)
    if data.layers:
        middle = y + places[data.layers[0], ""][0] + len(data.layers) * layout.cell_height / 2
        canvas.write(
            sheet, 8, middle, "layer", ha="center", size=11, rotation=90, color=palette.MUTED
        )  # fmt: skip


def _column_labels(sheet: Axes, data: HeatmapData, layout: _Layout, x: float, y: float) -> None:
    step = math.ceil(11 / layout.cell_width)
    for i, label in enumerate(canvas.fit(data.modules, _COLUMN_LABEL, 10.5)):
        if i % step == 0:
            center = x + (i + 0.5) * layout.cell_width
            canvas.write(
                sheet, center + 4, y + 7, label, ha="right", va="center", size=10.5, rotation=45
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
