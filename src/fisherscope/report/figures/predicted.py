"""Does the prediction hold: measured against predicted, by size of step and by method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

BAND = (0.8, 1.25)
_NUMBERS = ("predicted", "predicted_low", "predicted_high")
_MEASURED = ("measured", "measured_low", "measured_high")
_SCORES = ("spearman", "slope", "log_error")


@dataclass(frozen=True)
class PredictedData:
    """Points and how well they agree.

    Attributes:
        tasks: Watched tasks in page order.
        points: One row per displacement: task, scale, predicted and measured with intervals.
        scales: One row per size of step, in full: ``scale``, ``slope`` with interval.
        methods: One row per method over the steps that count: the three scores.
        small: Largest step that counts, or None where all do.
    """

    tasks: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    scales: tuple[Mapping[str, Any], ...]
    methods: tuple[Mapping[str, Any], ...]
    small: float | None

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        full = next((m for m in self.methods if m["method"] == "full"), None)
        if full is None or full["slope"] is None:
            return "No step was measured."
        lead = "Over the whole path" if self.small is None else f"For steps up to {self.small:g}"
        good = BAND[0] <= full["slope"] <= BAND[1]
        line = (
            f"{lead}, the full form {'holds' if good else 'misses'}: slope "
            f"{text.pretty(full['slope'])} "
            f"{text.interval(full['slope_low'], full['slope_high'])}, rank correlation "
            f"{text.pretty(full['spearman'])} over {text.count(full['n'])} points"
        )
        ranked = sorted(
            (m for m in self.methods if m["log_error"] is not None), key=lambda m: m["log_error"]
        )
        if len(ranked) > 1:
            factor = np.exp(ranked[-1]["log_error"])
            line += (
                f"; {ranked[0]['method']} is nearest to the measured curvature, "
                f"{ranked[-1]['method']} farthest, off by a factor of {factor:.3g}"
            )
        return line + "."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Left: every step taken, its predicted change of loss against the measured one, nats "
            "per token, linear near zero and logarithmic further out; filled: steps that count "
            "as small; on the line they are equal. Middle: slope of measured on predicted for "
            "each size of step; the band is 0.8 to 1.25. Right: how far each method's curvature "
            "is from the measured one, mean of |log ratio|. Bars are 95% bootstrap intervals over "
            "examples."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per method, then one per size of step.
        """
        columns = (
            Column(
                "scale", "Step", "number", "Multiple of the displacement; – over all that count"
            ),
            Column("method", "Method", "text"),
            *(
                Column(f"{key}{end}", f"{label}{mark}", "number")
                for key, label in (
                    ("spearman", "Rank corr."),
                    ("slope", "Slope"),
                    ("log_error", "|log error|"),
                )
                for end, mark in (("", ""), ("_low", " 2.5%"), ("_high", " 97.5%"))
            ),
            Column("n", "Points", "integer"),
        )
        return Table(columns, (*self.methods, *self.scales), "Measured against predicted")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Prediction", _draw(self)),)


def build(results: Mapping[str, Any]) -> PredictedData | None:
    """Read points and scores of a study.

    Args:
        results: The content of a study's ``results.json``.

    Returns:
        The figure's data; None where nothing was measured.
    """
    study = results.get("study") or {}
    rows = study.get("cells") or study.get("path") or []
    points = tuple(
        {
            "task": str(row.get("on", row.get("task"))),
            "by": str(row.get("by", "")),
            "scale": text.number(row.get("scale", row.get("t"))),
            **{key: text.number(row.get(key)) for key in (*_NUMBERS, *_MEASURED)},
        }
        for row in rows
    )
    points = tuple(p for p in points if p["predicted"] is not None and p["measured"] is not None)
    if not points:
        return None
    scores = [
        {
            "method": str(row["method"]),
            "scale": text.number(row.get("scale")),
            "n": text.number(row.get("n")),
            **{
                f"{key}{end}": text.number(row.get(f"{key}{end}"))
                for key in _SCORES
                for end in ("", "_low", "_high")
            },
        }
        for row in study.get("calibration") or []
    ]
    return PredictedData(
        tasks=tuple(dict.fromkeys(p["task"] for p in points)),
        points=points,
        scales=tuple(s for s in scores if s["scale"] is not None and s["method"] == "full"),
        methods=tuple(s for s in scores if s["scale"] is None),
        small=text.number(study.get("small")),
    )


def _draw(data: PredictedData) -> Any:
    with canvas.style("predicted"):
        figure = canvas.new_figure(400)
        left = canvas.add_axes(figure, (74, 20, 380, 320))
        tips = _scatter(left, data)
        if data.scales:
            _slopes(canvas.add_axes(figure, (530, 20, 280, 320)), data)
        _methods(canvas.add_axes(figure, (900, 20, 180, 320)), data)
        return canvas.to_svg(
            figure, name="predicted", label="Measured against predicted", hover={"points": tips}
        )


def _scatter(axes: Axes, data: PredictedData) -> list[str]:
    looks = palette.series(data.tasks)
    values = np.array([abs(p[key]) for p in data.points for key in ("predicted", "measured")])
    threshold = max(float(np.quantile(values[values > 0], 0.3)), 1e-9) if values.any() else 1.0
    axes.set_xscale("symlog", linthresh=threshold)
    axes.set_yscale("symlog", linthresh=threshold)
    reach = 1.5 * float(values.max()) or 1.0
    axes.plot([-reach, reach], [-reach, reach], color=palette.MUTED, lw=1, zorder=1)
    axes.axhline(0, color=palette.GRID, lw=0.8, zorder=0)
    axes.axvline(0, color=palette.GRID, lw=0.8, zorder=0)
    small = np.inf if data.small is None else data.small
    tips = []
    for task in data.tasks:
        own = [p for p in data.points if p["task"] == task]
        x, y = (np.array([p[key] for p in own]) for key in ("predicted", "measured"))
        color = looks[task].color
        ends = np.array([
            [abs(p["measured"] - (p[f"measured_{e}"] or p["measured"])) for p in own] for e in _ENDS
        ])
        axes.errorbar(x, y, yerr=ends, fmt="none", ecolor=color, elinewidth=0.7, alpha=0.3)
        filled = [p["scale"] <= small for p in own]
        colors = [color if f else palette.CARD for f in filled]
        axes.scatter(
            x, y, s=26, c=colors, edgecolors=color, linewidths=1.1, zorder=3, label=task,
            gid="points",
        )  # fmt: skip
        tips += [
            f"{p['by'] + ' on ' if p['by'] else ''}{task}, step {p['scale']:g}: predicted "
            f"{text.pretty(p['predicted'])}, measured {text.pretty(p['measured'])}"
            for p in own
        ]
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    largest = np.floor(np.log10(reach))
    powers = np.arange(np.ceil(np.log10(threshold)) + 1, largest + 1)
    powers = powers[:: -max(1, len(powers) // 3)] if len(powers) else np.array([largest])
    decades = 10.0**powers
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_ticks([*-decades, 0.0, *decades])
    axes.set_xlabel("predicted change, nats per token")
    axes.set_ylabel("measured")
    for n, task in enumerate(data.tasks):
        axes.text(
            0.03, 0.96 - 0.055 * n, task, transform=axes.transAxes, color=looks[task].color,
            size=12, va="top", parse_math=False,
        )  # fmt: skip
    return tips


def _slopes(axes: Axes, data: PredictedData) -> None:
    rows = [s for s in data.scales if s["slope"] is not None]
    x = np.array([s["scale"] for s in rows])
    y = np.array([s["slope"] for s in rows])
    ends = np.array([[abs(s["slope"] - (s[f"slope_{e}"] or 0)) for s in rows] for e in _ENDS])
    axes.axhspan(*BAND, color=palette.GRID, alpha=0.6, lw=0)
    axes.axhline(1, color=palette.MUTED, lw=1)
    axes.errorbar(x, y, yerr=ends, fmt="o", ms=5, color=palette.ACCENT, elinewidth=1.2)
    axes.set_xscale("log")
    axes.set_ylim(min(0.0, float(y.min()) - 0.1), max(1.6, min(3.0, float(y.max()) + 0.2)))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = x[:: max(1, len(x) // 6)]
    axes.set_xticks(shown, [f"{v:g}" for v in shown])
    if data.small is not None:
        axes.axvline(data.small, color=palette.MUTED, lw=1, ls=(0, (4, 3)))
    axes.set_xlabel("step, as a multiple of the displacement")
    axes.set_ylabel("slope of measured on predicted")


_ENDS = ("low", "high")


def _methods(axes: Axes, data: PredictedData) -> None:
    rows = [m for m in data.methods if m["log_error"] is not None]
    rows.sort(key=lambda m: m["log_error"])
    y = np.arange(len(rows))
    x = np.array([m["log_error"] for m in rows])
    ends = np.array([
        [abs(m["log_error"] - (m[f"log_error_{e}"] or m["log_error"])) for m in rows] for e in _ENDS
    ])
    if len(rows):
        axes.errorbar(x, y, xerr=ends, fmt="o", ms=6, color=palette.ACCENT, elinewidth=1.4)
    axes.set_yticks(y, [m["method"] for m in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean |log curvature ratio|")


FIGURE = FigureSpec(
    "prediction",
    "Does the prediction hold?",
    build,
    lambda results: "No step was measured, so nothing stands beside the prediction.",
)
