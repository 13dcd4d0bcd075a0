"""Whether tasks' gradients pull against each other: cosines by layer, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

ALL = "all"
_LEFT, _TOP, _GAP, _BELOW, _TITLE = 84.0, 30.0, 26.0, 30.0, 24.0
_SHAPES = {"plain": ("o", palette.ACCENT), "natural": ("D", palette.INK)}
_RESOLVED = {"conflict", "aligned"}


@dataclass(frozen=True)
class Cosine:
    """One pair of tasks in one layer and metric.

    Attributes:
        task_a: One task.
        task_b: The other.
        scope: Layer, or ``"all"``.
        metric: ``"plain"`` or ``"natural"``.
        cosine: Of the mean gradients, or None.
        low: Lower limit, or None.
        high: Upper limit, or None.
        outcome: What the interval says.
    """

    task_a: str
    task_b: str
    scope: str
    metric: str
    cosine: float | None
    low: float | None
    high: float | None
    outcome: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both tasks."""
        return self.task_a, self.task_b

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.outcome in _RESOLVED

    @property
    def place(self) -> str:
        """The layer in words.

        Returns:
            Text such as ``layer 3`` or ``all layers``.
        """
        if self.scope == ALL:
            return "all layers"
        return f"layer {self.scope}" if self.scope.isdigit() else self.scope

    def describe(self) -> str:
        """Value and interval in words.

        Returns:
            Text such as ``0.21 [0.10, 0.31]``.
        """
        return f"{text.pretty(self.cosine)} {text.interval(self.low, self.high)}"


@dataclass(frozen=True)
class ConflictData:
    """Cosines of all pairs.

    Attributes:
        pairs: Pairs of tasks, a panel each.
        scopes: Layers from the input up, then ``"all"``.
        rows: Every cosine.
    """

    pairs: tuple[tuple[str, str], ...]
    scopes: tuple[str, ...]
    rows: tuple[Cosine, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for metric in ("plain", "natural"):
            whole = [r for r in self.rows if r.scope == ALL and r.metric == metric]
            if not whole:
                continue
            kind = "" if metric == "plain" else "in the metric of the inverse Fisher "
            counts = {o: sum(r.outcome == o for r in whole) for o in ("conflict", "aligned")}
            rest = len(whole) - sum(counts.values())
            parts.append(
                f"{kind}{counts['conflict']} of {text.plural(len(whole), 'pair')} of tasks "
                f"{'pulls' if counts['conflict'] == 1 else 'pull'} against each other over all "
                f"layers, {counts['aligned']} together, {rest} unresolved"
            )
        inside = [r for r in self.rows if r.scope != ALL and r.resolved and r.cosine is not None]
        worst = min(inside, key=lambda r: r.cosine or 0.0, default=None)
        if worst is not None and worst.outcome == "conflict":
            parts.append(
                f"the sharpest conflict is between {text.spoken(worst.task_a)} and "
                f"{text.spoken(worst.task_b)} in {worst.place}: {worst.describe()} "
                f"({worst.metric})"
            )
        elif self.rows:
            parts.append("no single layer shows a resolved conflict")
        line = "; ".join(parts)
        return f"{line[:1].upper()}{line[1:]}." if line else "No cosine could be computed."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each panel is a pair of tasks, each row a layer (0 is next to the input). Right of "
            "the line a small step for one task helps the other, left of it they harm each other. "
            "Dots: cosine of the mean gradients; diamonds: after division by the root of the "
            "damped Fisher, as a natural-gradient step has it. Bars are 95% bootstrap intervals "
            "over the examples of both tasks. Open marks: the interval holds zero, or a mean "
            "gradient is not told apart from noise, where the bar goes from −1 to 1."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per cosine.
        """
        columns = (
            Column("task_a", "Task", "text"),
            Column("task_b", "And", "text"),
            Column("scope", "Layer", "text"),
            Column("metric", "Metric", "text", "natural: inverse Fisher"),
            Column("cosine", "Cosine", "number", "Of the mean gradients, norms unbiased"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("outcome", "Outcome", "text"),
        )
        return Table(columns, tuple(vars(r) for r in self.rows), "Cosines of mean gradients")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Cosines", _draw(self)),)


def build(results: Mapping[str, Any]) -> ConflictData | None:
    """Read the cosines.

    Args:
        results: The content of a study's ``results.json`` with a ``conflict``.

    Returns:
        The figure's data; None without any cosine.
    """
    found = (results.get("conflict") or {}).get("cosines") or []
    rows = tuple(
        Cosine(
            task_a=str(row["task_a"]),
            task_b=str(row["task_b"]),
            scope=str(row["scope"]),
            metric=str(row["metric"]),
            outcome=str(row.get("outcome") or ""),
            **{key: text.number(row.get(key)) for key in ("cosine", "low", "high")},
        )
        for row in found
    )
    if all(row.cosine is None for row in rows):
        return None
    pairs = tuple(dict.fromkeys(row.pair for row in rows))
    scopes = [s for s in dict.fromkeys(row.scope for row in rows) if s != ALL]
    return ConflictData(pairs, (*scopes, ALL), rows)


def _draw(data: ConflictData) -> Any:
    with canvas.style("conflict"):
        across = min(3, len(data.pairs))
        down = -(-len(data.pairs) // across)
        row = 26.0 if len(data.scopes) <= 12 else 16.0
        height = row * len(data.scopes)
        shown = dict(zip(data.scopes, canvas.fit([_label(s) for s in data.scopes], 70, 11),
                         strict=True))  # fmt: skip
        width = (canvas.WIDTH - _LEFT - _GAP * across) / across
        block = _TITLE + height + _BELOW
        figure = canvas.new_figure(_TOP + down * (block + 16) + 8)
        sheet = canvas.add_sheet(figure)
        _legend(sheet)
        hover = {}
        for i, pair in enumerate(data.pairs):
            left = _LEFT + (i % across) * (width + _GAP)
            top = _TOP + (i // across) * (block + 16) + _TITLE
            axes = canvas.add_axes(figure, (left, top, width, height))
            title = " and ".join(canvas.fit(pair, width / 2 - 24, 12.5))
            canvas.write(sheet, left, top - 12, title, size=12.5, weight="bold")
            rows = [r for r in data.rows if r.pair == pair and r.cosine is not None]
            hover |= _panel(axes, data, rows, f"pair-{i}")
            axes.set_yticks(
                range(len(data.scopes)),
                [shown[s] for s in data.scopes] if i % across == 0 else [],
            )
        label = f"Cosines of tasks' gradients by layer. {data.caption()}"
        return canvas.to_svg(figure, name="conflict", label=label, hover=hover)


def _panel(axes: Axes, data: ConflictData, rows: list[Cosine], gid: str) -> dict[str, list[str]]:
    place = {scope: i for i, scope in enumerate(data.scopes)}
    hover: dict[str, list[str]] = {}
    for metric, (marker, color) in _SHAPES.items():
        own = [r for r in rows if r.metric == metric]
        if not own:
            continue
        shift = -0.16 if metric == "plain" else 0.16
        ys = [place[r.scope] + shift for r in own]
        for r, y in zip(own, ys, strict=True):
            if r.low is not None and r.high is not None:
                faint = 1.0 if r.resolved else 0.45
                axes.plot([r.low, r.high], [y, y], color=color, linewidth=1.6, alpha=faint)
        fills = [color if r.resolved else palette.CARD for r in own]
        axes.scatter(
            [r.cosine or 0.0 for r in own], ys, s=34, marker=marker, c=fills, edgecolors=color,
            linewidths=1.4, zorder=3, gid=f"{gid}-{metric}", clip_on=False,
        )  # fmt: skip
        hover[f"{gid}-{metric}"] = [
            f"{r.task_a} and {r.task_b}, {r.place}, {metric}: {r.describe()}, "
            f"{r.outcome.replace('_', ' ')}"
            for r in own
        ]
    ends = [v for r in data.rows for v in (r.cosine, r.low, r.high) if v is not None]
    axes.set_xlim(min(-0.1, *ends) - 0.03, max(0.1, *ends) + 0.03)
    axes.axvline(0, color=palette.MUTED, linewidth=1, zorder=0)
    axes.axhline(len(data.scopes) - 1.5, color=palette.GRID, linewidth=1, zorder=0)
    axes.set_ylim(len(data.scopes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("cosine", labelpad=1)
    return hover


def _label(scope: str) -> str:
    return f"layer {scope}" if scope.isdigit() else scope


def _legend(sheet: Axes) -> None:
    x = _LEFT
    for metric, words in (("plain", "gradients"), ("natural", "in the inverse Fisher's metric")):
        marker, color = _SHAPES[metric]
        sheet.plot([x + 5], [12], marker=marker, markersize=6.5, color=color, linestyle="none")
        canvas.write(sheet, x + 16, 12, words, size=12)
        x += 40 + canvas.extent(words, 12)
    sheet.plot(
        [x + 5], [12], marker="o", markersize=6.5, linestyle="none",
        markerfacecolor=palette.CARD, markeredgecolor=palette.MUTED,
    )  # fmt: skip
    canvas.write(sheet, x + 16, 12, "not resolved", size=12, color=palette.MUTED)


FIGURE = FigureSpec(
    "conflict",
    "Do the tasks' gradients pull against each other?",
    build,
    lambda results: "The study did not compare gradients.",
)
