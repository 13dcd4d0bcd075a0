"""One panel per task, side by side, with one legend above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisherscope.report.figures import canvas

_ACROSS = 3
_GAP, _LEFT, _TOP, _BELOW = 34.0, 56.0, 62.0, 84.0


@dataclass(frozen=True)
class Panels:
    """Where the panels of a figure lie.

    Attributes:
        names: What each panel shows.
        high: Height of each in pixels.
    """

    names: Sequence[str]
    high: float = 270.0

    @property
    def columns(self) -> int:
        """How many panels stand side by side."""
        return min(len(self.names), _ACROSS)

    def figure(self) -> Figure:
        """An empty figure of the right size.

        Returns:
            The figure.
        """
        rows = -(-len(self.names) // _ACROSS)
        return canvas.new_figure(_TOP + rows * (self.high + _BELOW) + 6)

    def place(self, figure: Figure, sheet: Axes) -> Iterator[tuple[str, Axes, bool]]:
        """Make the panels one by one.

        Args:
            figure: The figure.
            sheet: Its sheet, for the titles.

        Yields:
            Name, axes, and whether they stand leftmost.
        """
        wide = (canvas.WIDTH - _LEFT - 10 - _GAP * (self.columns - 1)) / self.columns
        for i, name in enumerate(self.names):
            row, column = divmod(i, _ACROSS)
            x, y = _LEFT + column * (wide + _GAP), _TOP + row * (self.high + _BELOW)
            title = canvas.fit([name], wide, 14)[0]
            canvas.write(sheet, x, y - 14, title, size=14, weight="bold")
            yield name, canvas.add_axes(figure, (x, y, wide, self.high)), column == 0


def legend(sheet: Axes, entries: Sequence[tuple[str, str, Any]]) -> None:
    """Draw the legend above the panels.

    Args:
        sheet: Where to draw.
        entries: Label, colour and line style of each.
    """
    x = _LEFT
    for label, color, style in entries:
        sheet.plot([x, x + 26], [20, 20], color=color, linewidth=3, linestyle=style)
        canvas.write(sheet, x + 33, 20, label, size=12)
        x += 33 + canvas.extent(label, 12) + 26
