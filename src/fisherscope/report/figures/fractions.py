"""An axis of fractions from a single unit to all, stretched at both ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999)
_END = 0.9998
_MOST_TICKS = 7


def across(fraction: float) -> float:
    """Where a fraction lies on the axis.

    Args:
        fraction: From 0 to 1.

    Returns:
        Log-odds with the ends pulled in: zero lies before a single unit, one after the last tick.
    """
    f = min(max(fraction, 1e-7), _END)
    return float(np.log(f / (1 - f)))


def dress(axes: Axes, smallest: float) -> None:
    """Give axes limits and ticks of fractions.

    Args:
        axes: The axes, whose horizontal positions come from :func:`across`.
        smallest: Smallest fraction above zero that is shown.
    """
    axes.set_xlim(across(0.3 * smallest), across(1.0) + 0.3)
    shown = [t for t in _TICKS if across(t) >= axes.get_xlim()[0]]
    step = 1 + len(shown) // _MOST_TICKS
    axes.xaxis.set_major_locator(FixedLocator([across(t) for t in shown][::step]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(x: float, _: Any) -> str:
    return f"{100 / (1 + np.exp(-x)):.5g}%"
