"""Noise of one length over few weights or many: how much it takes to lose each task."""

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
from fisherscope.studies.percolation.sentences import ORDER_NAMES, percent

Row = Mapping[str, Any]
_LEFT, _TOP, _HIGH, _GAP = 108.0, 62.0, 200.0, 34.0


@dataclass(frozen=True)
class PhaseData:
    """The phase diagrams of all models.

    Attributes:
        models: The models.
        tasks: The tasks.
        orders: Orders in which the noise is concentrated.
        cells: One row per model, order, task, fraction and length.
        line: One row per model, order, task and fraction: the critical length.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    orders: tuple[str, ...]
    cells: tuple[Row, ...]
    line: tuple[Row, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for model in self.models:
            for task in self.tasks:
                best = [self._least(model, task, order) for order in self.orders]
                if not best or best[0] is None:
                    continue
                whose = f" of {text.spoken(model)}" if len(self.models) > 1 else ""
                parts.append(
                    f"{text.spoken(task)}{whose} is lost to the shortest noise, "
                    f"{percent(best[0]['value'])} of the length of all weights, when it is "
                    f"spread over the top {percent(best[0]['fraction'])} by Fisher"
                )
        return f"{'; '.join(parts)}." if parts else "No length that was tried loses a task."

    def _least(self, model: str, task: str, order: str) -> Row | None:
        mine = [
            row
            for row in self.line
            if (row["model"], row["on"], row["order"]) == (model, task, order)
            and text.number(row["value"]) is not None
        ]
        return min(mine, key=lambda row: row["value"], default=None)

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each cell is one measurement: Gaussian noise whose length is a share of the length "
            "of all weights (up) is spread over a fraction of the weights (across). Dark: the task "
            "is intact; bright: it is as bad as uninformed. Upper row: the weights of highest "
            "Fisher; lower row: random ones. Line: the critical length, at which half is lost, "
            "with 95% intervals over examples and draws; no dot where no length was enough. Where "
            "the line dips, damage is worst when it is concentrated like that."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per model, order, task, fraction and length.
        """
        columns = (
            Column("model", "Model", "text"),
            Column("order", "Order", "text"),
            Column("on", "Task", "text"),
            Column("removed", "Weights", "integer"),
            Column("fraction", "Fraction", "percent"),
            Column("norm", "Length", "number", "Share of the length of all weights"),
            Column("loss", "Loss", "number", "Nats per token"),
            Column("low", "2.5%", "number"),
            Column("high", "97.5%", "number"),
            Column("lost", "Lost", "percent", "From intact to uninformed"),
        )
        return Table(columns, self.cells, "Loss under noise of one length on some of the weights")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per model.
        """
        return tuple(
            View(model, _draw(self, model, f"phase-{number}"))
            for number, model in enumerate(self.models)
        )


def build(results: Mapping[str, Any]) -> PhaseData | None:
    """Read the phase diagrams.

    Args:
        results: A results dictionary.

    Returns:
        The figure's data; None where no noise was spread.
    """
    study = results.get("study") or {}
    cells = tuple(study.get("plane") or [])
    if not cells:
        return None
    return PhaseData(
        tuple(dict.fromkeys(row["model"] for row in cells)),
        tuple(dict.fromkeys(row["on"] for row in cells)),
        tuple(dict.fromkeys(row["order"] for row in cells)),
        cells,
        tuple(study.get("line") or []),
    )


def _draw(data: PhaseData, model: str, name: str) -> Any:
    with canvas.style(name):
        n = len(data.tasks)
        wide = min(300.0, (canvas.WIDTH - _LEFT - 10 - _GAP * (n - 1)) / n)
        figure = canvas.new_figure(_TOP + len(data.orders) * (_HIGH + 64) + 6)
        sheet = canvas.add_sheet(figure)
        tips: dict[str, list[str]] = {}
        for i, order in enumerate(data.orders):
            for j, task in enumerate(data.tasks):
                x, y = _LEFT + j * (wide + _GAP), _TOP + i * (_HIGH + 64)
                if i == 0:
                    title = canvas.fit([task], wide, 14)[0]
                    canvas.write(sheet, x, y - 14, title, size=14, weight="bold")
                axes = canvas.add_axes(figure, (x, y, wide, _HIGH))
                own = (model, task, order)
                cells = [r for r in data.cells if (r["model"], r["on"], r["order"]) == own]
                line = [r for r in data.line if (r["model"], r["on"], r["order"]) == own]
                gid = f"cells-{i}-{j}"
                tips[gid] = _panel(axes, cells, line, gid)
                if j == 0:
                    axes.set_ylabel("length of the noise")
                    label = f"{ORDER_NAMES[order]} order"
                    canvas.write(sheet, 22, y + _HIGH / 2, label, size=12, rotation=90, ha="center")
                axes.tick_params(labelleft=j == 0)  # the lengths are the same in every panel
                axes.set_xlabel("fraction of the weights")
        label = f"Phase diagram of {model}. {data.caption()}"
        return canvas.to_svg(figure, name=name, label=label, hover=tips)


def _panel(axes: Axes, cells: list[Row], line: list[Row], gid: str) -> list[str]:
    across = sorted({row["fraction"] for row in cells})
    up = sorted({row["norm"] for row in cells})
    xs, ys = _edges(np.log10(across)), _edges(np.log10(up))
    boxes, fills, tips = [], [], []
    for row in cells:
        i, j = across.index(row["fraction"]), up.index(row["norm"])
        boxes.append((xs[i], ys[j], xs[i + 1] - xs[i], ys[j + 1] - ys[j]))
        lost = text.number(row["lost"])
        fills.append(palette.GRID if lost is None else palette.sequential(lost))
        tips.append(
            f"{text.percent(row['fraction'])} of the weights, length {text.pretty(row['norm'])}: "
            f"loss {text.pretty(text.number(row['loss']))}, {text.percent(lost)} lost"
        )
    canvas.rectangles(axes, boxes, fills, gid=gid, edgecolors=palette.CARD, linewidths=1)
    known = [row for row in line if text.number(row["value"]) is not None]
    x = [np.log10(row["fraction"]) for row in known]
    axes.plot(x, [np.log10(row["value"]) for row in known], color=palette.HARM, linewidth=2.2,
              marker="o", markersize=5, markeredgecolor=palette.CARD, zorder=3)  # fmt: skip
    for place, row in zip(x, known, strict=True):
        ends = [text.number(row["low"]), text.number(row["high"])]
        limits = [ys[-1] if end is None else np.log10(end) for end in ends]
        axes.plot([place, place], limits, color=palette.HARM, linewidth=1.6, zorder=3)
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(ys[0], ys[-1])
    axes.set_xticks(np.log10(across), [f"{text.pretty(100 * f, 2)}%" for f in across])
    axes.set_yticks(np.log10(up), [f"{text.pretty(100 * f, 2)}%" for f in up])
    return tips


def _edges(middles: np.ndarray) -> np.ndarray:
    between = (middles[1:] + middles[:-1]) / 2
    first, last = 2 * middles[0] - between[0], 2 * middles[-1] - between[-1]
    return np.concatenate([[first], between, [last]])


FIGURE = FigureSpec(
    "phase",
    "How concentrated damage must be",
    build,
    lambda results: "No noise was spread (side=0), so there is no phase diagram.",
)
