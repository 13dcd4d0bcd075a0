"""Old loss against new loss along every fine-tuning: what is given for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table
from fisherscope.studies.remedies.arms import LABELS, NULLS, PLAIN, REMEDIES
from fisherscope.studies.remedies.result import listed
from fisherscope.studies.remedies.setting import MEAN

Row = Mapping[str, Any]
Path = tuple[np.ndarray, np.ndarray]
_DASHED = (0, (4, 2))


@dataclass(frozen=True)
class TradeoffData:
    """Paths of all fine-tunings.

    Attributes:
        name: The new task.
        tasks: The old tasks.
        paths: Arm to seed to loss of the new task and mean loss of the old ones, by step.
        marks: Level to the new task's loss there, mean over seeds.
        ends: Arm to the mean increase of the old loss at the highest level that it reaches:
            ``level`` and ``increase``.
        rows: One per arm, seed and step.
    """

    name: str
    tasks: tuple[str, ...]
    paths: Mapping[str, Mapping[int, Path]]
    marks: Mapping[float, float]
    ends: Mapping[str, Row]
    rows: tuple[Row, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        if not self.ends:
            return f"Nothing is learnt of {text.spoken(self.name)}, so nothing is given for it."
        top = max(row["level"] for row in self.ends.values())
        there = {arm: row for arm, row in self.ends.items() if row["level"] == top}
        ranked = sorted(there, key=lambda arm: there[arm]["increase"])
        said = [f"{LABELS[arm]} ({_signed(there[arm]['increase'])})" for arm in ranked]
        old = listed([text.spoken(task) for task in self.tasks])
        line = (
            f"At {top:.0%} of plain fine-tuning's progress on {text.spoken(self.name)} "
            f"{old} {'has' if len(self.tasks) == 1 else 'have'} lost least with {said[0]}"
        )
        if len(said) > 1:
            line += f" and most with {said[-1]}, nats per token"
        short = [LABELS[arm] for arm in self.paths if arm not in there]
        return f"{line}; {listed(short)} never got there." if short else f"{line}."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "A panel per remedy: across, the loss of the new task, falling to the right as it is "
            "learnt; up, the mean loss of the old tasks. Grey: plain fine-tuning; coloured: the "
            "remedy; broken: its null. Thick lines are means over seeds at each step, thin ones "
            "single seeds. Dotted: the levels. A line that runs lower gives less for the same."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per arm, seed and step.
        """
        columns = (
            Column("label", "Arm", "text"),
            Column("seed", "Seed", "integer"),
            Column("step", "Step", "integer"),
            Column("new", "New task", "number", "Loss, nats per token"),
            Column("old", "Old tasks", "number", "Mean of their losses, nats per token"),
        )
        return Table(columns, self.rows, "Losses along every fine-tuning")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Old against new", _draw(self)),)


def build(results: Mapping[str, Any]) -> TradeoffData | None:
    """Read the curves of a study of remedies.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None without curves.
    """
    study = results.get("study") or {}
    name, tasks = str(study.get("name")), tuple(str(task) for task in study.get("tasks") or ())
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in study.get("curves") or []:
        loss = text.number(row.get("loss"))
        if loss is not None and row.get("arm") in LABELS:
            key = (str(row["arm"]), int(row["seed"]), int(row["step"]))
            found.setdefault(key, {})[str(row["task"])] = loss
    rows = tuple(
        {
            "arm": arm,
            "label": LABELS[arm],
            "seed": seed,
            "step": step,
            "new": losses[name],
            "old": float(np.mean([losses[task] for task in tasks])),
        }
        for (arm, seed, step), losses in found.items()
        if {name, *tasks} <= losses.keys()
    )
    if not rows:
        return None
    paths: dict[str, dict[int, Path]] = {}
    for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
        line = tuple(np.array([row[key] for row in own]) for key in ("new", "old"))
        paths.setdefault(arm, {})[seed] = (line[0], line[1])
    ends: dict[str, Row] = {}
    for row in study.get("table") or []:
        increase, level = text.number(row.get("increase")), text.number(row.get("level"))
        if row.get("task") != MEAN or increase is None or level is None:
            continue
        if level >= ends.get(row["arm"], {"level": 0.0})["level"]:
            ends[row["arm"]] = {"level": level, "increase": increase}
    return TradeoffData(name, tasks, paths, _marks(study), ends, rows)


def _marks(study: Mapping[str, Any]) -> dict[float, float]:
    seeds = [row for row in study.get("progress") or [] if row.get("outcome") == "ok"]
    return {
        float(level): float(np.mean([r["start"] - level * (r["start"] - r["best"]) for r in seeds]))
        for level in (study.get("levels") or [] if seeds else [])
    }


def _signed(value: float) -> str:
    return f"+{text.pretty(value)}" if value > 0 else text.pretty(value)


def _draw(data: TradeoffData) -> Any:
    with canvas.style("tradeoff"):
        arms = [arm for arm in REMEDIES if arm in data.paths] or [PLAIN]
        columns = min(2, len(arms))
        lines = -(-len(arms) // columns)
        tall, wide = 330.0, (canvas.WIDTH - 20.0) / columns
        figure = canvas.new_figure(lines * tall + 10)
        looks = palette.series(REMEDIES)
        limits = _limits(data)
        for k, arm in enumerate(arms):
            box = (70 + (k % columns) * wide, 30 + (k // columns) * tall, wide - 90, tall - 90)
            axes = canvas.add_axes(figure, box)
            for mark in data.marks.values():
                axes.axvline(mark, color=palette.MUTED, lw=0.9, ls=(0, (1, 3)))
            color = looks[arm].color if arm in looks else palette.MUTED
            _path(axes, data.paths.get(PLAIN, {}), palette.MUTED, "-", LABELS[PLAIN])
            if arm != PLAIN:
                _path(axes, data.paths.get(NULLS[arm], {}), color, _DASHED, LABELS[NULLS[arm]])
                _path(axes, data.paths[arm], color, "-", LABELS[arm])
            axes.set_xlim(limits[1], limits[0])
            axes.set_ylim(limits[2], limits[3])
            axes.set_title(LABELS[arm], loc="left", size=13)
            axes.legend(frameon=False, fontsize=10.5, loc="upper left", labelcolor=palette.INK)
            if k // columns == lines - 1:
                axes.set_xlabel(f"loss of {data.name}, learnt to the right", parse_math=False)
            if k % columns == 0:
                axes.set_ylabel("mean loss of the old tasks")
        return canvas.to_svg(
            figure, name="tradeoff", label="Loss of the old tasks against loss of the new one"
        )


def _path(axes: Axes, seeds: Mapping[int, Path], color: str, style: Any, label: str) -> None:
    if not seeds:
        return
    for new, old in seeds.values():
        axes.plot(new, old, color=color, lw=0.8, ls=style, alpha=0.35)
    # Where a seed has diverged, the mean ends.
    steps = min(len(new) for new, _ in seeds.values())
    mean = [np.mean([path[k][:steps] for path in seeds.values()], axis=0) for k in (0, 1)]
    axes.plot(mean[0], mean[1], color=color, lw=2, ls=style, marker="o", ms=3.5, label=label)


def _limits(data: TradeoffData) -> tuple[float, float, float, float]:
    """Left, right, bottom and top that show all of plain fine-tuning and most of the rest."""
    new, old = (
        np.concatenate([path[k] for seeds in data.paths.values() for path in seeds.values()])
        for k in (0, 1)
    )
    plain = data.paths.get(PLAIN, {}).values()
    start = float(np.mean([path[0][0] for path in plain])) if plain else float(new.max())
    low = float(np.mean([path[1][0] for path in plain])) if plain else float(old.min())
    reach = max((float(path[1].max()) for path in plain), default=float(old.max()))
    room = max(start - float(new.min()), 1e-9)
    height = max(reach - low, 1e-9)
    top = min(float(old.max()), low + 2.5 * height)
    return (
        float(new.min()) - 0.05 * room,
        min(float(new.max()), start + 0.3 * room) + 0.05 * room,
        max(float(old.min()), low - 0.5 * height) - 0.06 * height,
        top + 0.1 * height,
    )


FIGURE = FigureSpec(
    "tradeoff",
    "What is given for what is learnt",
    build,
    lambda results: "No fine-tuning was followed.",
)
