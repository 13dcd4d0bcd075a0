"""Prediction against measurement: a scatter with intervals and the line where they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fisherscope.report.figures import palette

Span = tuple[float | None, ...]
# Beyond this ratio of the largest to the typical number, a straight axis hides the rest.
_WIDE = 60


@dataclass(frozen=True)
class Point:
    """One prediction with its measurement.

    Attributes:
        across: Prediction with its lower and upper limit; limits may be None.
        up: Measurement with its lower and upper limit; limits may be None.
        color: Colour.
        hollow: Whether it is drawn as an open diamond instead of a dot.
        tooltip: Text on hover.
    """

    across: Span
    up: Span
    color: str
    hollow: bool
    tooltip: str


def draw(axes: Axes, points: Sequence[Point], gid: str) -> list[str]:
    """Draw points with 95% intervals and the identity, on two equal axes.

    Args:
        axes: Square axes.
        points: At least one point whose prediction and measurement are known.
        gid: Identifier of the marks.

    Returns:
        Tooltips in drawing order, for that gid.
    """
    places = np.array([(p.across[0], p.up[0]) for p in points], dtype=np.float64)
    limits = _limits(axes, points, np.abs(places[places != 0]))
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.axhline(0, color=palette.GRID, linewidth=1, zorder=0)
    axes.axvline(0, color=palette.GRID, linewidth=1, zorder=0)
    line = np.linspace(*limits, 200)
    axes.plot(line, line, color=palette.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for point, (x, y) in zip(points, places, strict=True):
        look = {"color": point.color, "linewidth": 1.2, "alpha": 0.6, "zorder": 2}
        _, low, high = point.across
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], **look)
        _, low, high = point.up
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], **look)
    for point, (x, y) in zip(points, places, strict=True):
        face = palette.CARD if point.hollow else point.color
        axes.scatter(
            [x], [y], s=46, marker="D" if point.hollow else "o", linewidths=1.6, zorder=3,
            facecolors=face, edgecolors=point.color, gid=gid,
        )  # fmt: skip
    return [point.tooltip for point in points]


def _limits(axes: Axes, points: Sequence[Point], sizes: np.ndarray) -> tuple[float, float]:
    ends = [v for p in points for v in (*p.across, *p.up) if v is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    if len(sizes) and sizes.max() > _WIDE * np.median(sizes):
        bend = 10.0 ** math.floor(math.log10(float(np.median(sizes))))
        axes.set_xscale("symlog", linthresh=bend)
        axes.set_yscale("symlog", linthresh=bend)
        return (low * 1.4 if low < 0 else -bend / 2, high * 1.4 if high > 0 else bend / 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}".replace("-", "\u2212")))
    margin = 0.06 * (high - low or 1.0)
    return low - margin, high + margin
