"""What old tasks lose against what is learnt of the new one, model by model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

Row = Mapping[str, Any]
ALL, NEW, MATCHED = "all", "new", "matched"
_ACROSS = 3


@dataclass(frozen=True)
class BreakingData:
    """Damage against progress.

    Attributes:
        models: Models, the one that others are compared with first.
        tasks: Old tasks.
        rows: Mean curves of the matched runs, a row per model, task and step.
        seeds: Model, task and seed to progress and damage of one run.
        ratios: Task to the row of its ratio at equal progress, of the second model.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: Mapping[tuple[str, str, int], tuple[list[float], list[float]]]
    ratios: Mapping[str, Row]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        row = self.ratios.get(ALL)
        if not row or text.number(row.get("damage")) is None:
            return "No two models came through with enough seeds to be compared."
        resolved = row["outcome"] in {"more_brittle", "less_brittle"}
        gap = (
            f"a difference of {text.pretty(row['difference'])} "
            f"{text.interval(row['difference_low'], row['difference_high'])}"
        )
        said = {
            "no_damage": f"{gap}, and no ratio, as the latter is not resolved above zero",
            "not_resolved": "the ratio of the two is not told apart from 1",
        }.get(row["outcome"], f"{text.pretty(row['ratio'])} times as much")
        return (
            f"Where both have learnt {text.pretty(row['at'])} nats per token of the new task, the "
            f"old tasks have lost {text.pretty(row['damage'])} "
            f"{text.interval(row['damage_low'], row['damage_high'])} in "
            f"{text.spoken(row['model'])} and {text.pretty(row['reference_damage'])} "
            f"{text.interval(row['reference_damage_low'], row['reference_damage_high'])} in "
            f"{text.spoken(row['reference'])}"
            + (
                f": {said} {text.interval(row['ratio_low'], row['ratio_high'])}."
                if resolved
                else f"; {said}."
            )
        )

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Across: how far the new task's held-out loss has fallen; up: how far the old task's "
            "has risen since the start, nats per token. Thick lines: mean over seeds at matched "
            "rates, a dot per measurement, with 95% intervals over seeds and examples; thin "
            "lines: single runs. The model whose line lies higher pays more for the same "
            "progress. The dashed line is where the ratio is read."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per model, task and step.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("task", "Task", "text"),
            Column("step", "Step", "integer"),
            Column("progress", "Progress", "number", "Fall of the new task's loss, nats per token"),
            Column("progress_low", "2.5%", "number"),
            Column("progress_high", "97.5%", "number"),
            Column("damage", "Damage", "number", "Rise of the old task's loss, nats per token"),
            Column("damage_low", "2.5%", "number"),
            Column("damage_high", "97.5%", "number"),
        )
        return Table(columns, self.rows, "Damage against progress")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Damage", _draw(self)),)


def build(results: Mapping[str, Any]) -> BreakingData | None:
    """Read the curves of a brittleness study.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None without any curve.
    """
    study = results.get("study") or {}
    rows = tuple(r for r in study.get("curves") or [] if r.get("arm") == MATCHED)
    if not rows:
        return None
    models = tuple(dict.fromkeys([str(study["reference"]), *(str(r["model"]) for r in rows)]))
    tasks = tuple(dict.fromkeys(str(r["task"]) for r in rows if r["task"] != ALL))
    ratios: dict[str, Row] = {}
    for row in study.get("ratios") or []:
        if row["criterion"] == "progress":
            ratios.setdefault(str(row["task"]), row)
    return BreakingData(models, tasks, rows, _seeds(study), ratios)


def _seeds(
    study: Mapping[str, Any],
) -> dict[tuple[str, str, int], tuple[list[float], list[float]]]:
    losses: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in study.get("runs") or []:
        if row["arm"] == MATCHED and row["loss"] is not None:
            place = str(row["model"]), int(row["seed"])
            losses.setdefault(place, {}).setdefault(str(row["task"]), []).append(row["loss"])
    found = {}
    for (model, seed), own in losses.items():
        new = own.get(NEW, [])
        for task, values in own.items():
            if task != NEW and len(values) == len(new):
                along = [new[0] - loss for loss in new]
                found[model, task, seed] = along, [loss - values[0] for loss in values]
    return found


def _draw(data: BreakingData) -> Any:
    with canvas.style("breaking"):
        columns = min(_ACROSS, len(data.tasks))
        lines = math.ceil(len(data.tasks) / columns)
        top, high, wide = 46.0, 320.0, (canvas.WIDTH - 20.0) / columns
        figure = canvas.new_figure(top + lines * (high + 10))
        looks = palette.series(data.models)
        sheet = canvas.add_sheet(figure)
        x = 70.0
        for model in data.models:
            sheet.plot([x, x + 26], [18, 18], color=looks[model].color, linewidth=3)
            canvas.write(sheet, x + 33, 18, model, size=12)
            x += 33 + canvas.extent(model, 12) + 26
        tips: list[str] = []
        for n, task in enumerate(data.tasks):
            row, column = divmod(n, columns)
            box = (70 + column * wide, top + 24 + row * (high + 10), wide - 90, high - 80)
            axes = canvas.add_axes(figure, box)
            tips += _panel(axes, data, task, looks)
            axes.set_title(
                canvas.fit([task], wide - 90, 13)[0], loc="left", size=13, parse_math=False
            )
            axes.set_xlabel("progress on the new task")
            if column == 0:
                axes.set_ylabel("damage, nats per token")
        return canvas.to_svg(
            figure, name="breaking", label="Damage against progress", hover={"points": tips}
        )


def _panel(
    axes: Axes, data: BreakingData, task: str, looks: Mapping[str, palette.Series]
) -> list[str]:
    tips = []
    axes.axhline(0, color=palette.GRID, lw=0.8)
    at = text.number((data.ratios.get(task) or {}).get("at"))
    if at is not None:
        axes.axvline(at, color=palette.MUTED, lw=1, ls=(0, (4, 3)))
    for model in data.models:
        color = looks[model].color
        for (owner, on, _), (x, y) in data.seeds.items():
            if (owner, on) == (model, task):
                axes.plot(x, y, color=color, lw=0.8, alpha=0.7)
        own = [r for r in data.rows if (r["model"], r["task"]) == (model, task)]
        if not own:
            continue
        x, y, low, high = (
            [r[key] for r in own] for key in ("progress", "damage", "damage_low", "damage_high")
        )
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        axes.plot(x, y, color=color, lw=2.4)
        axes.scatter(x, y, s=22, color=color, zorder=3, gid="points")
        tips += [
            f"{model}, {task}, step {r['step']}: progress {text.pretty(r['progress'])}, damage "
            f"{text.pretty(r['damage'])} {text.interval(r['damage_low'], r['damage_high'])}"
            for r in own
        ]
    axes.grid(True)
    axes.set_axisbelow(True)
    return tips


FIGURE = FigureSpec(
    "breaking",
    "What the same progress costs",
    build,
    lambda results: "Some model made no progress on the new task, so nothing is compared.",
)
