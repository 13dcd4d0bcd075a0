"""Whether two tasks would keep the same parameters when pruned to the same sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, matrix, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

_MOST_ROWS, _MOST_PANELS = 24, 4
_HALF = _MOST_ROWS // 2


@dataclass(frozen=True)
class Overlap:
    """Overlap of two tasks' masks at one sparsity.

    Attributes:
        task_a: One task.
        task_b: The other task.
        sparsity: Fraction of parameters pruned.
        jaccard: Kept by both over kept by either.
        smaller: Kept by both over the smaller of the two masks, or None.
        chance: Jaccard of random masks of these sizes, or None.
        excess: Jaccard above chance, or None.
        chance_within: Jaccard of random masks that keep as many of each tensor, or None.
    """

    task_a: str
    task_b: str
    sparsity: float
    jaccard: float
    smaller: float | None
    chance: float | None
    excess: float | None
    chance_within: float | None

    @property
    def null(self) -> float | None:
        """The stricter of the two kinds of chance that is known.

        Returns:
            A Jaccard index, or None.
        """
        return self.chance if self.chance_within is None else self.chance_within

    @property
    def name(self) -> str:
        """Both tasks.

        Returns:
            Text such as ``math – code``.
        """
        return f"{self.task_a} – {self.task_b}"


@dataclass(frozen=True)
class OverlapData:
    """Overlaps of all pairs and sparsities.

    Attributes:
        rows: By pair, then by sparsity.
        tasks: All task names of the page, which fix the colours.
    """

    rows: tuple[Overlap, ...]
    tasks: tuple[str, ...]

    def lines(self) -> dict[str, list[Overlap]]:
        """One line per pair.

        Returns:
            Overlaps by ascending sparsity; the pair that overlaps most at the end comes first.
        """
        found: dict[str, list[Overlap]] = {}
        for row in self.rows:
            found.setdefault(row.name, []).append(row)
        for line in found.values():
            line.sort(key=lambda row: row.sparsity)
        return dict(sorted(found.items(), key=lambda item: (-item[1][-1].jaccard, item[0])))

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        lines = list(self.lines().values())
        ends = [line[-1] for line in (lines[:1] if len(lines) == 1 else (lines[0], lines[-1]))]
        words = [
            f"{text.spoken(row.task_a)} and {text.spoken(row.task_b)}"
            + (" would keep " if i == 0 else " ")
            + text.percent(row.jaccard)
            + (f" (chance {text.percent(row.null)})" if row.null is not None else "")
            for i, row in enumerate(ends)
        ]
        pruned = f"{100 * ends[0].sparsity:.4g}%"
        return f"Pruned to {pruned} sparsity, {' and '.join(words)} in common."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "For each pair of tasks, the parameters that both would keep, over those that either "
            "would keep, when each prunes the parameters with the smallest Fisher. The bar is what "
            "unrelated masks share by chance if they keep as many parameters of each tensor; the "
            "grey bar, by chance over the whole model. Between the two lies agreement on tensors, "
            "between bar and dot agreement on the parameters within them. No uncertainty is "
            "available here: one mask per task."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per pair and sparsity.
        """
        columns = (
            Column("task_a", "Task", "text"),
            Column("task_b", "Task", "text"),
            Column("sparsity", "Sparsity", "percent"),
            Column("jaccard", "Jaccard", "number", "Kept by both over kept by either"),
            Column("smaller", "Of the smaller", "number", "Kept by both over the smaller mask"),
            Column("chance", "Chance", "number", "Jaccard of unrelated masks"),
            Column("excess", "Excess", "number", "Jaccard above chance"),
            Column("chance_within", "Chance in tensors", "number", "As many kept of each tensor"),
        )
        rows = tuple(vars(row) for row in self.rows)
        return Table(columns, rows, "Overlap of pruning masks")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Overlap", _draw(self)),)


def build(results: Mapping[str, Any]) -> OverlapData | None:
    """Read the overlaps.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None without overlaps of different tasks.
    """
    rows = []
    for row in results.get("overlap") or []:
        sparsity, jaccard = text.number(row.get("sparsity")), text.number(row.get("jaccard"))
        if row["task_a"] == row["task_b"] or sparsity is None or jaccard is None:
            continue
        others = {
            key: text.number(row.get(key))
            for key in ("smaller", "chance", "excess", "chance_within")
        }
        rows.append(Overlap(row["task_a"], row["task_b"], sparsity, jaccard, **others))
    named = [name for row in rows for name in (row.task_a, row.task_b)]
    return OverlapData(tuple(rows), tuple(palette.task_names(results, *named))) if rows else None


def _draw(data: OverlapData) -> Any:
    with canvas.style("overlap"):
        lines = list(data.lines().values())
        shown = lines if len(lines) <= _MOST_ROWS else lines[:_HALF] + lines[-_HALF:]
        grid = sorted({row.sparsity for row in data.rows})
        if len(grid) > _MOST_PANELS:
            ends = np.linspace(0, len(grid) - 1, _MOST_PANELS).round().astype(int)
            grid = [grid[i] for i in ends]
        step, top = (26.0 if len(shown) <= 12 else 18.0), 52.0
        figure = canvas.new_figure(top + step * len(shown) + 62)
        sheet = canvas.add_sheet(figure)
        looks = palette.series(data.tasks)
        names = [(line[0].task_a, line[0].task_b) for line in shown]
        edge = matrix.pair_labels(sheet, names, looks, left=4, top=top, step=step, room=110.0)
        gap = 24.0
        wide = min(700.0, (canvas.WIDTH - 10 - edge) / len(grid) - gap)
        for i, sparsity in enumerate(grid):
            x = edge + gap / 2 + i * (wide + gap)
            title = f"{100 * sparsity:.4g}% pruned"
            canvas.write(sheet, x, top - 12, title, size=12.5, weight="bold")
            axes = canvas.add_axes(figure, (x, top, wide, step * len(shown)))
            _panel(axes, shown, sparsity)
        matrix.key(sheet, 14.0, ("value", "chance"))
        below = top + step * len(shown) + 38
        note = "Jaccard of the kept parameters"
        if len(lines) > len(shown):
            note += f"; {len(lines) - len(shown)} pairs between these are in the table"
        canvas.write(sheet, edge + gap / 2, below, note, size=11, color=palette.MUTED)
        return canvas.to_svg(figure, name="overlap", label=f"Mask overlap. {data.caption()}")


def _panel(axes: Axes, lines: Sequence[Sequence[Overlap]], sparsity: float) -> None:
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    for y, line in enumerate(lines):
        for row in (row for row in line if row.sparsity == sparsity):
            ends = [y - 0.3, y + 0.3]
            if row.chance is not None and row.chance_within is not None:
                axes.plot([row.chance] * 2, ends, color=palette.MUTED, linewidth=2, alpha=0.5)
            if row.null is not None:
                axes.plot([row.null, row.jaccard], [y, y], color=palette.ACCENT, linewidth=2)
                axes.plot([row.null] * 2, ends, color=palette.INK, linewidth=2)
            axes.plot(
                [row.jaccard], [y], marker="o", markersize=8, color=palette.ACCENT,
                markeredgewidth=0, clip_on=False,
            )  # fmt: skip


FIGURE = FigureSpec(
    "overlap",
    "Which parameters both would keep",
    build,
    lambda results: str(
        results.get("overlap_absent")
        or "Overlap compares the pruning masks of tasks: it needs at least two."
    ),
)
