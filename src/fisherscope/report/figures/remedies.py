"""What would have helped: every remedy beside its null, at equal loss of the new task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table
from fisherscope.studies.remedies.arms import LABELS, NULLS, REMEDIES
from fisherscope.studies.remedies.result import listed
from fisherscope.studies.remedies.setting import MEAN

Row = Mapping[str, Any]
_NUMBERS = tuple(
    f"{key}{end}"
    for key in ("loss", "increase", "to_plain", "to_null")
    for end in ("", "_low", "_high")
)
_COUNTS = ("level", "reached", "n_seeds", "to_plain_n", "to_null_n")
_TALL = 74.0


@dataclass(frozen=True)
class RemediesData:
    """Differences to plain fine-tuning and to each null.

    Attributes:
        name: The new task.
        tasks: The old tasks.
        levels: Levels in the order of the tabs: first the one that most remedies reach.
        rows: One per arm, level and task, the mean of the old tasks among them.
    """

    name: str
    tasks: tuple[str, ...]
    levels: tuple[float, ...]
    rows: tuple[Row, ...]

    def at(self, arm: str, level: float, task: str = MEAN) -> Row | None:
        """One row.

        Args:
            arm: The arm.
            level: The level.
            task: The old task. Default: the mean of all.

        Returns:
            The row, or ``None``.
        """
        wanted = (arm, level, task)
        return next((r for r in self.rows if (r["arm"], r["level"], r["task"]) == wanted), None)

    def remedies(self) -> list[str]:
        """The remedies that were tried.

        Returns:
            In the order of the page.
        """
        there = {row["arm"] for row in self.rows}
        return [arm for arm in REMEDIES if arm in there]

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        level = self.levels[0]
        found = {arm: self.at(arm, level) for arm in self.remedies()}
        old = listed([text.spoken(task) for task in self.tasks])
        lead = f"At {level:.0%} of plain fine-tuning's progress on {text.spoken(self.name)}"
        parts = []
        for verdict, said in (
            ("better", "costs {old} less than plain fine-tuning"),
            ("worse", "costs {old} more than plain fine-tuning"),
            ("not_resolved", "is not told apart from plain fine-tuning"),
        ):
            arms = [a for a, r in found.items() if r and r["to_plain_verdict"] == verdict]
            if arms:
                each = listed([f"{LABELS[a]} ({_value(found[a], 'to_plain')})" for a in arms])
                plural = said if len(arms) == 1 else _plural(said)
                parts.append(f"{each} {plural.format(old=old)}")
        nulls = [a for a, r in found.items() if r and r["to_null_verdict"] == "better"]
        if found:
            own = listed([LABELS[a] for a in nulls]) if nulls else "no remedy"
            parts.append(
                f"{own} {'costs' if len(nulls) < 2 else 'cost'} less than the null as well"
            )
        short = [LABELS[a] for a, r in found.items() if r and r["outcome"] == "never_reached"]
        if short:
            parts.append(f"{listed(short)} {'does' if len(short) == 1 else 'do'} not get there")
        return f"{lead}, {'; '.join(parts)}." if parts else "No remedy was compared."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            "Each pair of bars is a remedy (filled) and its null (hollow): the mean loss of the "
            "old tasks minus that of plain fine-tuning, where the new task's loss first falls to "
            "the level; to the left of zero less is forgotten. Bars are means over seeds with "
            "paired 95% t-intervals. On the right the remedy minus its own null. A tab per level, "
            "a share of what plain fine-tuning gains on held-out rows of the new task."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per arm, level and task.
        """
        columns = (
            Column("label", "Arm", "text"),
            Column("level", "Level", "percent", "Share of plain fine-tuning's gain"),
            Column("task", "Old task", "text"),
            Column("reached", "Reached", "integer", "Seeds that reach the level"),
            Column("n_seeds", "Seeds", "integer"),
            Column("increase", "Increase", "number", "Of the old loss, nats per token"),
            Column("to_plain", "To plain", "number", "Difference, paired by seed"),
            Column("to_plain_low", "2.5%", "number"),
            Column("to_plain_high", "97.5%", "number"),
            Column("to_plain_verdict", "Verdict", "text"),
            Column("to_null", "To its null", "number", "Difference, paired by seed"),
            Column("to_null_low", "2.5%", "number"),
            Column("to_null_high", "97.5%", "number"),
            Column("to_null_verdict", "Verdict", "text"),
        )
        return Table(columns, self.rows, "Old losses at equal loss of the new task")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view per level.
        """
        return tuple(View(f"{level:.0%} learnt", _draw(self, level)) for level in self.levels)


def build(results: Mapping[str, Any]) -> RemediesData | None:
    """Read the comparison of a study of remedies.

    Args:
        results: The content of its ``results.json``.

    Returns:
        The figure's data; None where nothing was compared.
    """
    study = results.get("study") or {}
    rows = tuple(
        {
            **{key: row.get(key) for key in ("arm", "task", "outcome")},
            "label": LABELS.get(str(row.get("arm")), str(row.get("arm"))),
            "to_plain_verdict": _words(row.get("to_plain_verdict")),
            "to_null_verdict": _words(row.get("to_null_verdict")),
            **{key: text.number(row.get(key)) for key in (*_NUMBERS, *_COUNTS)},
        }
        for row in study.get("table") or []
    )
    if not any(row["arm"] in REMEDIES for row in rows):
        return None
    levels = dict.fromkeys(row["level"] for row in rows)

    def reached(level: float) -> tuple[int, float]:
        mine = [r for r in rows if r["level"] == level and r["task"] == MEAN]
        return sum(r["arm"] in REMEDIES and (r["to_plain_n"] or 0) > 1 for r in mine), level

    return RemediesData(
        name=str(study.get("name")),
        tasks=tuple(str(task) for task in study.get("tasks") or ()),
        levels=tuple(sorted(levels, key=reached, reverse=True)),
        rows=rows,
    )


def _words(verdict: Any) -> str | None:
    return str(verdict) if verdict else None


def _plural(said: str) -> str:
    return said.replace("costs", "cost").replace("is not", "are not")


def _value(row: Row | None, key: str) -> str:
    assert row is not None
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{text.pretty(row[key])} {text.interval(low, high)}".strip()


def _draw(data: RemediesData, level: float) -> Any:
    with canvas.style("remedies"):
        arms = data.remedies()
        figure = canvas.new_figure(len(arms) * _TALL + 84)
        axes = canvas.add_axes(figure, (260, 26, 500, len(arms) * _TALL))
        looks = palette.series(REMEDIES)
        axes.axvline(0, color=palette.MUTED, lw=1.2)
        tips: list[str] = []
        for k, arm in enumerate(arms):
            color = looks[arm].color
            for name, y, filled in ((arm, k - 0.19, True), (NULLS[arm], k + 0.19, False)):
                row = data.at(name, level)
                if row is None:
                    continue
                tips += _bar(axes, row, y, color, filled=filled)
                _label(axes, row["label"], y, strong=filled)
            _beside(axes, data.at(arm, level), k)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        plain = data.at("plain", level)
        zero = "" if plain is None else f", which has lost {text.pretty(plain['increase'])} by then"
        axes.set_xlabel(f"mean old loss minus that of plain fine-tuning{zero}; nats per token")
        axes.text(
            1.03, 1.0, "remedy minus its null", transform=axes.transAxes, size=12,
            color=palette.MUTED, va="bottom",
        )  # fmt: skip
        return canvas.to_svg(
            figure,
            name=f"remedies-{round(100 * level)}",
            label=f"Remedies and nulls at {level:.0%} of plain fine-tuning's progress",
            hover={"bars": tips},
        )


def _label(axes: Axes, label: str, y: float, *, strong: bool) -> None:
    axes.text(
        -0.02, y, label, transform=axes.get_yaxis_transform(), ha="right", va="center", size=12,
        color=palette.INK if strong else palette.MUTED, parse_math=False,
    )  # fmt: skip


def _bar(axes: Axes, row: Row, y: float, color: str, *, filled: bool) -> list[str]:
    value = row["to_plain"]
    if value is None:
        said = f"{text.count(row['reached'])} of {text.count(row['n_seeds'])} seeds get here"
        axes.annotate(
            said, (0, y), (8, 0), textcoords="offset points", va="center", size=11,
            color=palette.MUTED,
        )  # fmt: skip
        return []
    (bar,) = axes.barh(
        y, value, height=0.32, facecolor=color if filled else "none", edgecolor=color, lw=1.4
    )
    bar.set_gid("bars")
    low, high = row["to_plain_low"], row["to_plain_high"]
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=palette.INK, lw=1.4, solid_capstyle="butt")
    n = f"{text.count(row['to_plain_n'])} of {text.count(row['n_seeds'])} seeds"
    return [f"{row['label']}: {_value(row, 'to_plain')} nats per token to plain, {n}"]


def _beside(axes: Axes, row: Row | None, y: float) -> None:
    if row is None:
        return
    verdict = str(row["to_null_verdict"] or "").replace("_", " ")
    lines = ["not both get here" if row["to_null"] is None else _value(row, "to_null"), verdict]
    for line, place in zip(lines, (y - 0.12, y + 0.16), strict=True):
        if line == verdict and row["to_null"] is None:
            continue
        axes.text(
            1.03, place, line, transform=axes.get_yaxis_transform(), va="center", size=12,
            color=palette.INK if line != verdict else palette.MUTED,
        )  # fmt: skip


FIGURE = FigureSpec(
    "remedies",
    "What would have helped?",
    build,
    lambda results: "Plain fine-tuning made no progress, or no remedy was run.",
)
