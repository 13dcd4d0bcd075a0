"""Fisher trace, its concentration and the share of the curvature along the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

Row = Mapping[str, Any]
PANELS = {
    "trace": "Fisher trace per token",
    "top": "held by the top 1%",
    "curvature_share": "share of the curvature",
}


@dataclass(frozen=True)
class SharpnessData:
    """What may explain the damage.

    Attributes:
        models: Models in their order.
        tasks: Old tasks.
        rows: A row per model, task and step.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        parts = []
        for task in self.tasks:
            own = [r for r in self.rows if r["task"] == task]
            first = {r["model"]: r for r in own if r["step"] == 0}
            last = {r["model"]: r for r in own if r["step"] == max(q["step"] for q in own)}
            traces = ", ".join(
                f"{text.spoken(m)} {text.pretty(text.number(first[m]['trace']))}"
                for m in self.models
                if m in first
            )
            line = f"{text.spoken(task)}: trace at the start {traces}"
            shares = [
                f"{text.spoken(m)} {text.percent(share)}"
                for m in self.models
                if m in last and (share := text.number(last[m]["curvature_share"])) is not None
            ]
            if shares:
                line += (
                    f", curvature's share in the predicted damage at the end {', '.join(shares)}"
                )
            parts.append(line)
        return f"{'; '.join(parts)}."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "One row per old task, followed along the matched runs. Left: the trace of its Fisher "
            "(labels drawn from the model), per token. Middle: how much of the trace the largest "
            "1% of its coordinates hold. Right: the second-order term over the sizes of both "
            "terms of the change of loss that is predicted at the start for the whole update; 0 "
            "if the gradient explains it, 1 if the curvature does. Bars: 95% intervals over "
            "seeds; the start is the same for all seeds."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per model, task and step.
        """
        numbers = (
            ("trace", "Trace", "Per token"),
            ("top", "Top 1%", "Share of the trace"),
            ("first", "First order", "Nats per token"),
            ("second", "Second order", "Nats per token"),
            ("measured", "Measured", "Nats per token"),
            ("curvature_share", "Share of the curvature", ""),
            ("of_measured", "Second / measured", ""),
        )
        columns = (
            Column("model", "Model", "text"),
            Column("task", "Task", "text"),
            Column("step", "Step", "integer"),
            *(
                Column(f"{key}{end}", f"{label}{mark}", "number", hint)
                for key, label, hint in numbers
                for end, mark in (("", ""), ("_low", " 2.5%"), ("_high", " 97.5%"))
            ),
        )
        return Table(columns, self.rows, "Fisher and curvature on the way")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Fisher", _draw(self)),)


def build(results: Mapping[str, Any]) -> SharpnessData | None:
    """Read the geometry of a brittleness study.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None where it was not looked at.
    """
    rows = tuple((results.get("study") or {}).get("geometry") or [])
    if not rows:
        return None
    return SharpnessData(
        tuple(dict.fromkeys(str(r["model"]) for r in rows)),
        tuple(dict.fromkeys(str(r["task"]) for r in rows)),
        rows,
    )


def _draw(data: SharpnessData) -> Any:
    with canvas.style("sharpness"):
        top, high, wide = 46.0, 250.0, (canvas.WIDTH - 20.0) / len(PANELS)
        figure = canvas.new_figure(top + len(data.tasks) * high)
        looks = palette.series(data.models)
        sheet = canvas.add_sheet(figure)
        x = 76.0
        for model in data.models:
            sheet.plot([x, x + 26], [18, 18], color=looks[model].color, linewidth=3)
            canvas.write(sheet, x + 33, 18, model, size=12)
            x += 33 + canvas.extent(model, 12) + 26
        tips: list[str] = []
        for n, task in enumerate(data.tasks):
            for column, (key, title) in enumerate(PANELS.items()):
                box = (76 + column * wide, top + 24 + n * high, wide - 96, high - 82)
                axes = canvas.add_axes(figure, box)
                tips += _panel(axes, data, task, key, looks)
                label = canvas.fit([task], 120, 13)[0]
                axes.set_title(f"{label}: {title}", loc="left", size=12, parse_math=False)
                axes.set_xlabel("step")
        return canvas.to_svg(
            figure, name="sharpness", label="Fisher and curvature", hover={"points": tips}
        )


def _panel(
    axes: Axes, data: SharpnessData, task: str, key: str, looks: Mapping[str, palette.Series]
) -> list[str]:
    tips = []
    for model in data.models:
        own = [
            r
            for r in data.rows
            if (r["model"], r["task"]) == (model, task) and text.number(r.get(key)) is not None
        ]
        if not own:
            continue
        color = looks[model].color
        x, y = ([r[k] for r in own] for k in ("step", key))
        for r in own:
            low, high = (text.number(r.get(f"{key}{end}")) for end in ("_low", "_high"))
            if low is not None and high is not None:
                axes.plot([r["step"]] * 2, [low, high], color=color, lw=1.4)
        axes.plot(x, y, color=color, lw=2)
        axes.scatter(x, y, s=26, color=color, zorder=3, gid="points")
        tips += [f"{model}, {task}, step {r['step']}: {text.pretty(r[key])}" for r in own]
    last = max(r["step"] for r in data.rows)
    axes.set_xlim(-0.04 * last, 1.04 * last)
    if key == "curvature_share":
        axes.set_ylim(0, 1.02)
    else:
        axes.set_ylim(bottom=0)
    if key != "trace":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}%"))
    axes.grid(True)
    axes.set_axisbelow(True)
    return tips


FIGURE = FigureSpec(
    "sharpness",
    "How sharp the old tasks are",
    build,
    lambda results: "Fisher and curvature were not looked at.",
)
