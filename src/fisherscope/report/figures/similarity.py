"""How alike two tasks are, between what chance gives and what the data could show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from fisherscope.report import text
from fisherscope.report.figures import canvas, matrix, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

# The first that the results hold is the one that headlines and captions speak of.
METRICS = {
    "cosine": "Cosine",
    "bhattacharyya": "Bhattacharyya overlap",
    "spearman": "Rank correlation",
    "pearson": "Pearson correlation",
    "jaccard": "Jaccard of the top parameters",
}
_MOST_ROWS = 28


@dataclass(frozen=True)
class Pair:
    """One similarity of two tasks.

    Attributes:
        task_a: One task.
        task_b: The other task.
        value: The similarity on all data, or None.
        low: Smallest similarity of a half of one task's data and a half of the other's, or None.
        high: Largest of these, or None. Not an interval of the value, which has all the data.
        halves: Mean of these: what to hold against the ceiling, which is made of halves too.
        ceiling: A task against itself on disjoint halves, mean of the two tasks, or None.
        floor: Mean over permutations within tensors, or None.
        floor_high: Upper limit over permutations, or None.
        n_a: Examples of the one task.
        n_b: Examples of the other.
    """

    task_a: str
    task_b: str
    value: float | None
    low: float | None
    high: float | None
    halves: float | None
    ceiling: float | None
    floor: float | None
    floor_high: float | None
    n_a: float | None
    n_b: float | None

    @property
    def name(self) -> str:
        """Both tasks.

        Returns:
            Text such as ``math – code``.
        """
        return f"{self.task_a} – {self.task_b}"

    @property
    def words(self) -> str:
        """Both tasks, for running text.

        Returns:
            Text such as ``math and code``.
        """
        return f"{text.spoken(self.task_a)} and {text.spoken(self.task_b)}"

    @property
    def above_floor(self) -> bool | None:
        """Whether even the least alike halves are more alike than chance makes them.

        Returns:
            None where the value or the floor is unknown.
        """
        limit = self.floor_high if self.floor_high is not None else self.floor
        lowest = self.low if self.low is not None else self.value
        return None if limit is None or lowest is None else lowest > limit


@dataclass(frozen=True)
class SimilarityData:
    """Similarities of all pairs of tasks.

    Attributes:
        tasks: All task names of the page, which fix the colours.
        order: Tasks by likeness, so that groups stand together.
        pairs: For each metric, one entry per pair.
    """

    tasks: tuple[str, ...]
    order: tuple[str, ...]
    pairs: Mapping[str, tuple[Pair, ...]]

    @property
    def metric(self) -> str:
        """The metric that captions speak of.

        Returns:
            A key of :data:`METRICS` or a metric unknown to it.
        """
        return next(iter(self.pairs))

    def ranked(self, metric: str | None = None) -> list[Pair]:
        """Pairs with a value, most alike first.

        Args:
            metric: A metric; by default the one of the caption.

        Returns:
            The pairs.
        """
        known = [pair for pair in self.pairs[metric or self.metric] if pair.value is not None]
        return sorted(known, key=lambda pair: (-(pair.value or 0.0), pair.name))

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        ranked = self.ranked()
        measure = METRICS.get(self.metric, self.metric).lower()
        said = [f"By {measure}, {ranked[0].words} are most alike ({describe(ranked[0])})"]
        if len(ranked) == 1:
            said = [f"The {measure} of {ranked[0].words} is {describe(ranked[0])}"]
        else:
            said.append(f"{ranked[-1].words} least ({describe(ranked[-1])})")
        tested = [pair.above_floor for pair in ranked if pair.above_floor is not None]
        if tested:
            said.append(
                f"{sum(tested)} of {text.plural(len(tested), 'pair')} "
                f"{'lies' if sum(tested) == 1 else 'lie'} above chance"
            )
        return "; ".join(said) + "."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Left: similarity of two tasks' Fishers on all data, and beneath it the range between "
            "a half of one task's data and a half of the other's. Right: the same pairs on a line. "
            "The bar is the ceiling: a task against itself on disjoint halves of its data. It is "
            "made of halves, so hold the open circle and its line against it, which are too; the "
            "dot has all the data and so lies higher. The grey band is the floor: what is left "
            "when the parameters of one task are shuffled within each tensor. A pair at its "
            "ceiling cannot be told from one task; a pair on its floor shares nothing but which "
            "tensors are large. The tabs give other measures: cosine and Pearson follow the few "
            "largest values, rank correlation follows all of them."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per metric and pair.
        """
        columns = (
            Column("metric", "Measure", "text"),
            Column("task_a", "Task", "text"),
            Column("task_b", "Task", "text"),
            Column("value", "Value", "number"),
            Column("halves", "Halves", "number", "A half of one task and one of the other, mean"),
            Column("low", "Halves, low", "number", "Smallest of these"),
            Column("high", "Halves, high", "number", "Largest of these"),
            Column("ceiling", "Ceiling", "number", "Same task, disjoint halves"),
            Column("floor", "Floor", "number", "Mean over permutations within tensors"),
            Column("floor_high", "Floor, high", "number", "95% limit over permutations"),
            Column("n_a", "n", "integer", "Examples of the first task"),
            Column("n_b", "n", "integer", "Examples of the second task"),
        )
        rows = tuple(
            {"metric": metric, **vars(pair)}
            for metric, group in self.pairs.items()
            for pair in group
        )
        return Table(columns, rows, "Similarity of tasks, with halves, ceiling and floor")

    def views(self) -> tuple[View, ...]:
        """Draw one tab per metric.

        Returns:
            The views.
        """
        return tuple(
            View(METRICS.get(metric, metric), _draw(self, metric, f"similarity-{i}"))
            for i, metric in enumerate(self.pairs)
        )


def describe(pair: Pair) -> str:
    """A pair's value with everything needed to judge it.

    Args:
        pair: The pair.

    Returns:
        Text such as ``0.62; halves 0.55 to 0.60, floor 0.05, ceiling 0.93``.
    """
    around = []
    if pair.low is not None and pair.high is not None:
        around.append(f"halves {text.pretty(pair.low, 2)} to {text.pretty(pair.high, 2)}")
    around += [f"floor {text.pretty(pair.floor, 2)}"] if pair.floor is not None else []
    around += [f"ceiling {text.pretty(pair.ceiling, 2)}"] if pair.ceiling is not None else []
    return f"{text.pretty(pair.value)}; {', '.join(around) or 'no floor or ceiling'}"


def build(results: Mapping[str, Any]) -> SimilarityData | None:
    """Sort similarities by metric and find the order of the tasks.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without a value for a pair of different tasks.
    """
    rows = [row for row in results.get("similarity") or [] if row["task_a"] != row["task_b"]]
    if all(text.number(row.get("value")) is None for row in rows):
        return None
    fields = ("value", "low", "high", "halves", "ceiling", "floor", "floor_high", "n_a", "n_b")
    found: dict[str, list[Pair]] = {}
    for row in rows:
        values = {field: text.number(row.get(field)) for field in fields}
        found.setdefault(row["metric"], []).append(Pair(row["task_a"], row["task_b"], **values))
    found = {m: group for m, group in found.items() if any(p.value is not None for p in group)}
    metrics = [m for m in METRICS if m in found] + [m for m in found if m not in METRICS]
    compared = {name for row in rows for name in (row["task_a"], row["task_b"])}
    everyone = palette.task_names(results, *sorted(compared))
    tasks = [name for name in everyone if name in compared]
    order = _likeness_order(tasks, found[metrics[0]])
    return SimilarityData(
        tuple(everyone), tuple(order), {metric: tuple(found[metric]) for metric in metrics}
    )


def _likeness_order(tasks: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    # Leaf order of average linkage; pairs without a value count as typical.
    known = [pair.value for pair in pairs if pair.value is not None]
    if len(tasks) < 3 or not known:
        return list(tasks)
    place = {name: i for i, name in enumerate(tasks)}
    distance = np.full((len(tasks), len(tasks)), 1 - float(np.median(known)))
    for pair in pairs:
        if pair.value is not None:
            i, j = place[pair.task_a], place[pair.task_b]
            distance[i, j] = distance[j, i] = 1 - pair.value
    np.fill_diagonal(distance, 0)
    condensed = squareform(np.maximum(distance, 0), checks=False)
    leaves = leaves_list(linkage(condensed, "average", optimal_ordering=True))
    return [tasks[int(i)] for i in leaves]


def _draw(data: SimilarityData, metric: str, name: str) -> Any:
    with canvas.style(name):
        looks = palette.series(data.tasks)
        left, top = matrix.label_width(data.order), 44.0
        cell = min(76.0, 430.0 / len(data.order))
        side = cell * len(data.order)
        ranked = data.ranked(metric)
        shown = ranked
        if len(ranked) > _MOST_ROWS:
            shown = ranked[: _MOST_ROWS // 2] + ranked[-_MOST_ROWS // 2 :]
        step = min(36.0, max(18.0, side / max(len(shown), 1)))
        forest = step * max(len(shown), 1)
        height = max(top + side + matrix.label_height(data.order), top + forest + 52, 190.0)
        figure = canvas.new_figure(height)
        sheet = canvas.add_sheet(figure)
        tooltips = matrix.draw(
            sheet, _entries(data, metric), data.order, looks,
            left=left, top=top, cell=cell, gid="cells",
        )  # fmt: skip
        start = left + side + 36
        _forest(figure, sheet, shown, looks, start, top, step, len(ranked) - len(shown))
        label = f"Similarity of tasks, {METRICS.get(metric, metric)}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label, hover={"cells": tooltips})


def _entries(data: SimilarityData, metric: str) -> dict[tuple[str, str], matrix.Entry]:
    pairs = data.pairs[metric]
    floors = [pair.floor for pair in pairs if pair.floor is not None]
    values = [pair.value for pair in pairs if pair.value is not None]
    bottom = min([0.0, *floors, *values])
    entries = {(n, n): matrix.Entry("", "", palette.GRID, f"{n} with itself") for n in data.order}
    for pair in pairs:
        fill = palette.GRID
        if pair.value is not None:
            fill = palette.sequential((pair.value - bottom) / (1 - bottom or 1))
        small = ""
        if pair.low is not None and pair.high is not None:
            small = f"{pair.low:.2f} … {pair.high:.2f}".replace("-", "\u2212")
        main = text.MISSING if pair.value is None else f"{pair.value:.2f}".replace("-", "\u2212")
        entry = matrix.Entry(main, small, fill, f"{pair.name}: {describe(pair)}")
        entries[pair.task_a, pair.task_b] = entries[pair.task_b, pair.task_a] = entry
    return entries


def _forest(
    figure: Any,
    sheet: Axes,
    pairs: Sequence[Pair],
    looks: Mapping[str, palette.Series],
    left: float,
    top: float,
    step: float,
    hidden: int,
) -> None:
    names = [(pair.task_a, pair.task_b) for pair in pairs]
    room = 90.0 if left < 640 else 62.0
    edge = matrix.pair_labels(sheet, names, looks, left=left, top=top, step=step, room=room)
    start = edge + 6
    matrix.key(sheet, 16.0, ("value", "halves", "floor", "ceiling"))
    box = (start, top, canvas.WIDTH - 12 - start, step * len(pairs))
    axes = canvas.add_axes(figure, box)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    lowest = min([0.0, *(v for p in pairs for v in (p.low, p.value, p.floor) if v is not None)])
    axes.set_xlim(lowest - 0.02, 1.02)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    for y, pair in enumerate(pairs):
        _forest_row(axes, y, pair)
    below = top + step * len(pairs)
    if hidden:
        note = f"{hidden} pairs between the first and the last {len(pairs) // 2} are in the table"
        canvas.write(sheet, start, below + 38, note, size=11, color=palette.MUTED)


def _forest_row(axes: Axes, y: int, pair: Pair) -> None:
    if pair.floor is not None:
        high = pair.floor_high if pair.floor_high is not None else pair.floor
        low = min(axes.get_xlim()[0], 0.0)
        boxes = [(low, y - 0.36, max(high - low, 0.004), 0.72)]
        canvas.rectangles(axes, boxes, palette.MUTED, alpha=0.25)
    if pair.ceiling is not None:
        axes.plot([pair.ceiling] * 2, [y - 0.36, y + 0.36], color=palette.INK, linewidth=2)
    if pair.low is not None and pair.high is not None:
        axes.plot([pair.low, pair.high], [y, y], color=palette.ACCENT, linewidth=1.5)
    if pair.halves is not None:
        axes.plot(
            [pair.halves], [y], marker="o", markersize=7, markerfacecolor=palette.CARD,
            markeredgecolor=palette.ACCENT, linestyle="none", clip_on=False,
        )  # fmt: skip
    axes.plot(
        [pair.value or 0.0], [y], marker="o", markersize=6, color=palette.ACCENT, linestyle="none",
        markeredgewidth=0, clip_on=False,
    )  # fmt: skip


FIGURE = FigureSpec(
    "similarity",
    "How alike the tasks are",
    build,
    lambda results: "Similarity compares tasks: it needs at least two.",
)
