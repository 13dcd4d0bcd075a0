"""The layer × module map: its rows and columns, and where they lie on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from matplotlib.axes import Axes

from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.canvas import Box

# Columns in the order of the forward pass; modules not listed come between attention and norms.
_FIRST = (
    *("c_attn", "qkv", "query_key_value", "in_proj", "q_proj", "query", "q"),
    *("k_proj", "key", "k", "v_proj", "value", "v"),
    *("o_proj", "out_proj", "dense", "attn_output"),
    *("gate_proj", "up_proj", "c_fc", "fc1", "dense_h_to_4h", "intermediate"),
    *("down_proj", "c_proj", "fc2", "dense_4h_to_h", "output"),
)
_GAP, _EDGE, _COLUMN_LABEL = 22.0, 6.0, 115.0
_TOP = 52.0
Place = tuple[int | None, str]


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a layer × module map.

    Attributes:
        layers: Layer indices, top to bottom; empty for a model without layers.
        modules: Modules inside layers, left to right.
        above: Modules drawn above the layers (embeddings).
        below: Modules drawn below the layers (final norm, head and whatever else).
    """

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    above: tuple[str, ...]
    below: tuple[str, ...]

    @classmethod
    def of(cls, places: Iterable[Place]) -> Self:
        """The grid that holds these places.

        Args:
            places: Layer (None outside the layers) and module of each cell.

        Returns:
            The grid.
        """
        places = list(places)
        layers = sorted({layer for layer, _ in places if layer is not None})
        modules = _ordered(module for layer, module in places if layer is not None)
        aside = list(dict.fromkeys(module for layer, module in places if layer is None))
        above = [module for module in aside if layers and "emb" in module]
        below = [module for module in aside if module not in above]
        below.sort(key=lambda module: {"norm": 0, "head": 2}.get(module, 1 if layers else 0))
        return cls(tuple(layers), tuple(modules), tuple(above), tuple(below))

    def rank(self, place: Place) -> tuple[float, ...]:
        """A place's position in reading order.

        Args:
            place: Layer and module.

        Returns:
            A sort key.
        """
        layer, module = place
        outside = -1.0 if module in self.above else math.inf
        order = [*self.above, *self.modules, *self.below]
        return outside if layer is None else layer, order.index(module)


def _ordered(names: Iterable[str]) -> list[str]:
    seen = list(dict.fromkeys(names))
    known = {name: i for i, name in enumerate(_FIRST)}
    return sorted(seen, key=lambda n: (n == "norm", known.get(n, len(_FIRST)), seen.index(n)))


@dataclass(frozen=True)
class Layout:
    """Where panels of one grid lie, in pixels.

    Attributes:
        grid: What is laid out.
        per_row: Panels in a row.
        cell_width: Width of a cell inside the layers.
        cell_height: Height of a cell inside the layers.
        left: Room for row labels.
        panel_width: Width of a panel.
        panel_height: Height of a panel without its labels.
        row_height: Height of a row of panels.
        height: Height of the figure.
        rows: Top and height of each row of a panel; layers under (layer, ""), the rest by
            module.
    """

    grid: Grid
    per_row: int
    cell_width: float
    cell_height: float
    left: float
    panel_width: float
    panel_height: float
    row_height: float
    height: float
    rows: Mapping[Place, tuple[float, float]]

    @classmethod
    def of(cls, grid: Grid, panels: int) -> Self:
        """Lay panels out on the width of the page.

        Args:
            grid: Rows and columns of every panel.
            panels: Number of panels.

        Returns:
            The layout.
        """
        columns = max(1, len(grid.modules))
        beside = [*grid.above, *grid.below, "layer"]
        left = 18 + max(canvas.extent(label, 11) for label in canvas.fit(beside, 140, 11))
        room = canvas.WIDTH - left - 4
        widest = 56.0 if grid.layers else 120.0
        smallest = max(100.0, columns * 19.0)
        per_row = max(1, min(panels, int((room + _GAP) // (smallest + _GAP))))
        lines = math.ceil(panels / per_row)
        per_row = math.ceil(panels / lines)
        cell_width = min(max(widest, 100.0 / columns), ((room + _GAP) / per_row - _GAP) / columns)
        cell_height = min(26.0, max(6.0, 420.0 / max(1, len(grid.layers))))
        rows, panel_height = _rows(grid, cell_height)
        named_below = canvas.fit(grid.modules, _COLUMN_LABEL, 10.5)
        longest = max((canvas.extent(label, 10.5) for label in named_below), default=0.0)
        labels = 12 + 0.72 * longest if grid.layers else 6.0
        row_height = 30 + panel_height + labels + 10
        return cls(
            grid=grid,
            per_row=per_row,
            cell_width=cell_width,
            cell_height=cell_height,
            left=left,
            panel_width=columns * cell_width,
            panel_height=panel_height,
            row_height=row_height,
            height=_TOP + lines * row_height,
            rows=rows,
        )

    def corner(self, panel: int) -> tuple[float, float]:
        """Where a panel begins.

        Args:
            panel: Its number.

        Returns:
            Left and top of its first cell.
        """
        x = self.left + (panel % self.per_row) * (self.panel_width + _GAP)
        return x, _TOP + (panel // self.per_row) * self.row_height + 30

    def box(self, place: Place, x: float, y: float) -> Box:
        """Where a cell lies.

        Args:
            place: Layer and module.
            x: Left of its panel.
            y: Top of its panel.

        Returns:
            Left, top, width, height.
        """
        layer, module = place
        if layer is None:
            top, height = self.rows[None, module]
            return x, y + top, self.panel_width, height
        top, height = self.rows[layer, ""]
        column = self.grid.modules.index(module)
        return x + column * self.cell_width, y + top, self.cell_width, height

    def frame(self, sheet: Axes, panel: int, title: str, color: str) -> None:
        """Draw what every panel has: title, coloured edge, outlines, labels.

        Every block has an outline: the faintest cells would melt into the page.

        Args:
            sheet: Where to draw.
            panel: Number of the panel.
            title: Its title, already short enough.
            color: Colour of its edge.
        """
        x, y = self.corner(panel)
        canvas.rectangles(sheet, [(x, y - 8, self.panel_width, 3)], color)
        canvas.write(sheet, x, y - 18, title, size=13, weight="bold")
        if panel % self.per_row == 0:
            self._row_labels(sheet, y)
        self._column_labels(sheet, x, y + self.panel_height)
        blocks = [self.rows[None, module] for module in (*self.grid.above, *self.grid.below)]
        if self.grid.layers:
            first, last = (self.rows[self.grid.layers[i], ""] for i in (0, -1))
            blocks.append((first[0], last[0] + last[1] - first[0]))
        frames = [(x, y + at, self.panel_width, tall) for at, tall in blocks]
        canvas.rectangles(sheet, frames, "none", edgecolors=palette.GRID, linewidths=0.8)

    def titles(self, names: Sequence[str]) -> list[str]:
        """Titles that fit over the panels.

        Args:
            names: Full names.

        Returns:
            One title each, all different.
        """
        return canvas.fit(names, self.panel_width / 1.1, 13)

    def _row_labels(self, sheet: Axes, y: float) -> None:
        step = next(
            s for s in (1, 2, 5, 10, 20, 50, 10**9) if s * self.cell_height >= 13 or s == 10**9
        )
        asides = [*self.grid.above, *self.grid.below]
        shown = dict(zip(asides, canvas.fit(asides, 140, 11), strict=True))
        for (layer, module), (top, height) in self.rows.items():
            if layer is None or layer % step == 0:
                label = shown[module] if layer is None else str(layer)
                where = self.left - 7
                canvas.write(sheet, where, y + top + height / 2, label, ha="right", size=11)
        if self.grid.layers:
            first = self.rows[self.grid.layers[0], ""][0]
            middle = y + first + len(self.grid.layers) * self.cell_height / 2
            look = {"ha": "center", "size": 11, "rotation": 90, "color": palette.MUTED}
            canvas.write(sheet, 8, middle, "layer", **look)

    def _column_labels(self, sheet: Axes, x: float, y: float) -> None:
        step = math.ceil(11 / self.cell_width)
        look = {"ha": "right", "va": "center", "size": 10.5, "rotation": 45}
        for i, label in enumerate(canvas.fit(self.grid.modules, _COLUMN_LABEL, 10.5)):
            if i % step == 0:
                center = x + (i + 0.5) * self.cell_width
                canvas.write(sheet, center + 4, y + 7, label, **look)


def _rows(grid: Grid, cell_height: float) -> tuple[dict[Place, tuple[float, float]], float]:
    aside = 15.0 if grid.layers else 24.0
    places: dict[Place, tuple[float, float]] = {}
    blocks: list[list[Place]] = [
        [(None, module) for module in grid.above],
        [(layer, "") for layer in grid.layers],
        [(None, module) for module in grid.below],
    ]
    y = 0.0
    for block in filter(None, blocks):
        for place in block:
            height = aside if place[0] is None else cell_height
            places[place] = (y, height)
            y += height
        y += _EDGE
    return places, max(0.0, y - _EDGE)
