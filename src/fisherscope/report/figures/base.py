"""What a figure is: a data object that knows its finding, its table and how to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from markupsafe import Markup

from fisherscope.report.tables import Table


@dataclass(frozen=True)
class View:
    """One drawing of a figure; several views of the same data become tabs.

    Attributes:
        label: Name of the tab.
        svg: Inline SVG.
    """

    label: str
    svg: Markup


class FigureData(Protocol):
    """A figure before it is drawn."""

    def caption(self) -> str:
        """The finding in one sentence, with its numbers.

        Returns:
            Plain text.
        """
        ...

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        ...

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            The table.
        """
        ...

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            At least one view.
        """
        ...


@dataclass(frozen=True)
class FigureSpec:
    """One line of the registry.

    Attributes:
        id: Anchor of the section in the page.
        title: Heading.
        build: From results to the figure's data, or None where the results hold none.
        absent: From results to why there is no figure then.
    """

    id: str
    title: str
    build: Callable[[Mapping[str, Any]], FigureData | None]
    absent: Callable[[Mapping[str, Any]], str]


def per_level(
    name: str,
    levels: Sequence[str],
    models: Sequence[str],
    draw: Callable[[str, str, str], Markup],
) -> tuple[View, ...]:
    """A drawing for each level of removal and each model.

    Args:
        name: Of the figure; drawings are called after it.
        levels: What is removed, in the singular.
        models: Their names, told only where there are several.
        draw: From level, model and the drawing's name to the drawing.

    Returns:
        The views.
    """
    several = len(models) > 1
    return tuple(
        View(
            f"{level}s".capitalize() + (f", {model}" if several else ""),
            draw(level, model, f"{name}-{level}-{number}"),
        )
        for level in levels
        for number, model in enumerate(models)
    )
