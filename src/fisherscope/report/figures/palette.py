"""Colours: one per task everywhere, and page colours that follow light and dark mode.

Matplotlib draws with the marker colours below; :mod:`fisherscope.report.figures.canvas`
turns each into a CSS variable, so one SVG serves both modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

INK = "#010203"
MUTED = "#040506"
GRID = "#070809"
CARD = "#0a0b0c"
ACCENT = "#0d0e0f"
HARM = "#b2182b"
HELP = "#2166ac"
ON_LIGHT = "#111111"
ON_DARK = "#ffffff"

# Okabe and Ito's eight colours, blue first; the second value replaces a colour that is too
# faint on a light page, the third one that is too dark on a dark page.
_OKABE_ITO = (
    ("#0072b2", "#0072b2", "#3b9bdc"),
    ("#d55e00", "#d55e00", "#e8742a"),
    ("#009e73", "#009e73", "#1db98c"),
    ("#cc79a7", "#c4699b", "#d88ab5"),
    ("#e69f00", "#d99400", "#e9a820"),
    ("#56b4e9", "#45a7e0", "#7fccf5"),
    ("#000000", "#000000", "#e6e6e6"),
    ("#f0e442", "#b5a900", "#f0e442"),
)
_DASHES = ((), (5, 2), (1.5, 1.5))
_MARKED = {
    INK: "var(--ink, #1c2128)",
    MUTED: "var(--muted, #59636e)",
    GRID: "var(--grid, #d8dee4)",
    CARD: "var(--card, #ffffff)",
    ACCENT: "var(--accent, #0b5cad)",
}


@dataclass(frozen=True)
class Series:
    """How one task is drawn.

    Attributes:
        index: Number of the colour, also in the CSS class ``s0`` … ``s7``.
        color: Colour for matplotlib.
        dashes: Line pattern; from the ninth task on it tells equal colours apart.
    """

    index: int
    color: str
    dashes: tuple[float, ...]

    @property
    def linestyle(self) -> Any:
        """The line pattern in matplotlib's form.

        Returns:
            A line style.
        """
        return (0, self.dashes) if self.dashes else "-"


def _marker(index: int) -> str:
    # Slot 6 is black, which is also a text colour: a marker of its own keeps them apart.
    return "#000002" if index == 6 else _OKABE_ITO[index][0]


def series(names: Iterable[str]) -> dict[str, Series]:
    """A look for each task, by its position.

    Args:
        names: Task names in the order of the results.

    Returns:
        One entry per name.
    """
    looks = {}
    for i, name in enumerate(names):
        slot, round_ = i % len(_OKABE_ITO), i // len(_OKABE_ITO)
        looks[name] = Series(slot, _marker(slot), _DASHES[round_ % len(_DASHES)])
    return looks


def task_names(results: Mapping[str, Any], *others: str) -> list[str]:
    """Task names in page order, then names that only occur elsewhere in the results.

    Args:
        results: A results dictionary.
        *others: Names used by a figure.

    Returns:
        Each name once.
    """
    return list(dict.fromkeys([*(task["name"] for task in results["tasks"]), *others]))


def css_variables() -> dict[str, str]:
    """The colours of the tasks as CSS, for the light and the dark page.

    Returns:
        ``{"light": declarations, "dark": declarations}``.
    """
    return {
        mode: " ".join(f"--s{i}: {colors[k]};" for i, colors in enumerate(_OKABE_ITO))
        for mode, k in (("light", 1), ("dark", 2))
    }


def replacements() -> dict[str, str]:
    """What each marker colour becomes in the page.

    Returns:
        Hexadecimal colour to CSS value.
    """
    colors = {_marker(i): f"var(--s{i}, {look[1]})" for i, look in enumerate(_OKABE_ITO)}
    return {**_MARKED, **colors}


def sequential(position: float) -> str:
    """Colour of a magnitude.

    Args:
        position: From 0 (low) to 1 (high); values outside are clipped.

    Returns:
        A hexadecimal colour of the perceptually uniform map viridis.
    """
    steps = _viridis()
    return steps[round(float(np.clip(position, 0, 1)) * (len(steps) - 1))]


@cache
def _viridis() -> tuple[str, ...]:
    # All steps at once: looking up one colour at a time would copy the map each time.
    steps = colormaps["viridis"](np.linspace(0, 1, 256))
    return tuple(to_hex(rgba) for rgba in steps)


def signed(position: float) -> tuple[float, float, float, float]:
    """Colour of a signed number: see-through at zero, so that it suits any page.

    Args:
        position: From -1 (help) to 1 (harm); values outside are clipped.

    Returns:
        Red, green, blue and opacity.
    """
    base = HARM if position > 0 else HELP
    red, green, blue = (int(base[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 0.9 * float(min(1.0, abs(position)))


def text_on(fill: str) -> str:
    """Black or white, whichever reads better.

    Args:
        fill: Hexadecimal colour beneath the text.

    Returns:
        A hexadecimal colour.
    """
    channels = np.array([int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return ON_LIGHT if luminance > 0.2 else ON_DARK
