"""A task × task matrix with coloured edges, shared by the figures that compare tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report.figures import canvas, palette

_LABEL = 125.0


@dataclass(frozen=True)
class Entry:
    """One cell of a matrix.

    Attributes:
        main: The number.
        small: What stands beneath it where there is room.
        fill: Colour for matplotlib: hexadecimal, or red, green, blue and opacity.
        tooltip: Text on hover.
        hatched: Whether the value is not told apart from nothing.
    """

    main: str
    small: str
    fill: Any
    tooltip: str
    hatched: bool = False

    @property
    def ink(self) -> str:
        """Colour of the text.

        Returns:
            A hexadecimal colour that reads well on the fill.
        """
        if isinstance(self.fill, str):
            return palette.INK if self.fill == palette.GRID else palette.text_on(self.fill)
        return palette.ON_DARK if self.fill[3] > 0.75 else palette.INK


def label_width(names: Sequence[str]) -> float:
    """Room that row labels need, with the coloured edge.

    Args:
        names: Task names.

    Returns:
        Pixels.
    """
    labels = canvas.fit(names, _LABEL, 11.5)
    return 18 + max((canvas.extent(label, 11.5) for label in labels), default=0.0)


def label_height(names: Sequence[str]) -> float:
    """Room that column labels need below the matrix.

    Args:
        names: Task names.

    Returns:
        Pixels.
    """
    return 8 + 0.72 * label_width(names)


def draw(
    sheet: Axes,
    entries: Mapping[tuple[str, str], Entry],
    names: Sequence[str],
    looks: Mapping[str, palette.Series],
    *,
    left: float,
    top: float,
    cell: float,
    gid: str,
    rows: bool = True,
) -> list[str]:
    """Draw a square matrix.

    Args:
        sheet: Axes in pixels.
        entries: Cells by row and column name; pairs that are absent stay empty.
        names: Row and column order.
        looks: Colour per task.
        left: Left edge of the cells.
        top: Top edge of the cells.
        cell: Side of a cell.
        gid: Identifier of the cells.
        rows: Whether row labels are written.

    Returns:
        Tooltips in drawing order, for that gid.
    """
    labels = canvas.fit(names, _LABEL, 11.5)
    present = [(r, c) for r in names for c in names if (r, c) in entries]
    place = {name: i for i, name in enumerate(names)}
    boxes = [(left + place[c] * cell, top + place[r] * cell, cell, cell) for r, c in present]
    cells = [entries[pair] for pair in present]
    fills = [entry.fill for entry in cells]
    canvas.rectangles(sheet, boxes, fills, gid=gid, edgecolors=palette.CARD, linewidths=1)
    doubtful = [box for box, entry in zip(boxes, cells, strict=True) if entry.hatched]
    canvas.rectangles(sheet, doubtful, "none", hatch="///", edgecolors=palette.MUTED, alpha=0.35)
    roomy = cell >= 50
    for (x, y, side, _), entry in zip(boxes, cells, strict=True):
        lift = 8 if roomy and entry.small else 0
        canvas.write(
            sheet, x + side / 2, y + side / 2 - lift, entry.main,
            ha="center", size=13 if roomy else 10, color=entry.ink,
        )  # fmt: skip
        if lift:
            canvas.write(
                sheet, x + side / 2, y + side / 2 + 10, entry.small,
                ha="center", size=10, color=entry.ink,
            )  # fmt: skip
    bottom = top + cell * len(names)
    for i, name in enumerate(names):
        middle, color = (i + 0.5) * cell, looks[name].color
        canvas.rectangles(sheet, [(left + i * cell + 1, bottom + 3, cell - 2, 3)], color)
        canvas.write(
            sheet, left + middle + 5, bottom + 14, labels[i], ha="right", size=11.5, rotation=40
        )
        canvas.rectangles(sheet, [(left - 6, top + i * cell + 1, 3, cell - 2)], color)
        if rows:
            canvas.write(sheet, left - 12, top + middle, labels[i], ha="right", size=11.5)
    return [entry.tooltip for entry in cells]


def pair_labels(
    sheet: Axes,
    pairs: Sequence[tuple[str, str]],
    looks: Mapping[str, palette.Series],
    *,
    left: float,
    top: float,
    step: float,
    room: float,
) -> float:
    """Label rows with two tasks each, every name beside its colour.

    Args:
        sheet: Axes in pixels.
        pairs: Two task names per row.
        looks: Colour per task.
        left: Left edge of the labels.
        top: Top edge of the first row.
        step: Height of a row.
        room: Most pixels that one name may take.

    Returns:
        The right edge of the labels.
    """
    unique = list(dict.fromkeys(name for pair in pairs for name in pair))
    labels = canvas.fit(unique, room, 11.5)
    short = dict(zip(unique, labels, strict=True))
    one = 24 + max((canvas.extent(label, 11.5) for label in labels), default=0.0)
    for i, pair in enumerate(pairs):
        row = top + (i + 0.5) * step
        for x, name in zip((left, left + one), pair, strict=True):
            canvas.rectangles(sheet, [(x, row - 4, 8, 8)], looks[name].color)
            canvas.write(sheet, x + 13, row, short[name], size=11.5)
    return left + 2 * one


def key(sheet: Axes, y: float, labels: Sequence[str]) -> None:
    """Explain the marks of a row chart, aligned to the right edge.

    Args:
        sheet: Axes in pixels.
        y: Middle of the line.
        labels: What to explain, left to right: ``value``, ``halves`` (an open circle), ``floor``
            (a band), or a word for a bar.
    """
    x = canvas.WIDTH - 8.0
    for label in reversed(labels):
        canvas.write(sheet, x, y, label, ha="right", size=11, color=palette.MUTED)
        x -= canvas.extent(label, 11) + 10
        if label == "floor":
            canvas.rectangles(sheet, [(x - 10, y - 7, 14, 14)], palette.MUTED, alpha=0.25)
        elif label in {"value", "halves"}:
            face = palette.ACCENT if label == "value" else palette.CARD
            sheet.plot(
                [x], [y], marker="o", markersize=7, markerfacecolor=face,
                markeredgecolor=palette.ACCENT, linestyle="none",
            )  # fmt: skip
        else:
            sheet.plot([x, x], [y - 7, y + 7], color=palette.INK, linewidth=2)
        x -= 24
