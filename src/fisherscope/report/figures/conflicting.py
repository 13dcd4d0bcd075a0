"""The examples of one task that hurt another most, with their q-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fisherscope.report import text
from fisherscope.report.figures import canvas, palette
from fisherscope.report.figures.base import FigureSpec, View
from fisherscope.report.tables import Column, Table

_SHOWN = 5
_ROW, _TOP = 23.0, 30.0
_BAR = 300.0


@dataclass(frozen=True)
class Harmful:
    """One example of a task, and what a step on it does to another task.

    Attributes:
        on: Task that is hurt.
        by: Task of the example.
        example: Its id.
        tokens: Supervised tokens, or None.
        harm: Mean harm, or None.
        statistic: The studentised harm, or None.
        p: p-value, or None.
        q: q-value, or None.
        found: Whether q is small enough and the harm above zero.
    """

    on: str
    by: str
    example: str
    tokens: float | None
    harm: float | None
    statistic: float | None
    p: float | None
    q: float | None
    found: bool


@dataclass(frozen=True)
class HarmfulData:
    """The most harmful examples of every ordered pair of tasks, plain gradients.

    Attributes:
        tasks: Task names, which fix the colours.
        rows: Examples, ordered by pair, then by p.
        counts: (hurt task, stepping task) to (found, tested).
        level: Largest q that counts as found.
    """

    tasks: tuple[str, ...]
    rows: tuple[Harmful, ...]
    counts: dict[tuple[str, str], tuple[int, int]]
    level: float

    def caption(self) -> str:
        """The finding in one sentence.

        Returns:
            Plain text.
        """
        found = {pair: n for pair, (n, _) in self.counts.items() if n}
        tested = sum(n for _, n in self.counts.values())
        if not found:
            return (
                f"No example is found to hurt another task more than its own task's examples do "
                f"({tested:,} tested, false-discovery rate {text.percent(self.level)})."
            )
        on, by = max(found, key=lambda pair: found[pair] / self.counts[pair][1])
        n, of = self.counts[on, by]
        line = (
            f"{text.plural(sum(found.values()), 'example')} of {tested:,} tested "
            f"{'hurts' if sum(found.values()) == 1 else 'hurt'} another task more than their own "
            f"task's examples do (false-discovery rate {text.percent(self.level)}), most of "
            f"{text.spoken(by)} against {text.spoken(on)}: {n} of {of}"
        )
        first = min((r for r in self.rows if r.found), key=lambda r: r.q or 0.0, default=None)
        if first is not None:
            line += f"; the surest is {first.example} against {text.spoken(first.on)}"
            line += f", q = {text.pretty(first.q, 2)}"
        return f"{line}."

    def reading(self) -> str:
        """How to read the figure.

        Returns:
            Plain text.
        """
        return (
            f"Up to {_SHOWN} examples per pair of tasks, the surest first. Bars: mean harm in "
            "units of its own standard error, relative to the other examples of the same task. "
            "Filled: the q-value (Benjamini and Hochberg) is small enough and a step on the "
            "example raises the other task's loss. p-values come from permuting harms among "
            "examples, for each example that is hurt by itself."
        )

    def table(self) -> Table:
        """The numbers behind the figure.

        Returns:
            One row per example shown.
        """
        columns = (
            Column("on", "Hurts", "text"),
            Column("by", "Example of", "text"),
            Column("example", "Example", "text"),
            Column("tokens", "Tokens", "integer"),
            Column("harm", "Harm", "number", "Nats per token and unit of the step's rate"),
            Column("statistic", "t", "number", "Studentised, relative to its own task's examples"),
            Column("p", "p", "number"),
            Column("q", "q", "number", "Benjamini and Hochberg"),
            Column("found", "Found", "flag"),
        )
        return Table(columns, tuple(vars(r) for r in self.rows), "The most harmful examples")

    def views(self) -> tuple[View, ...]:
        """Draw.

        Returns:
            One view.
        """
        return (View("Examples", _draw(self)),)


def build(results: Mapping[str, Any]) -> HarmfulData | None:
    """Read examples and tests.

    Args:
        results: The content of a study's ``results.json`` with a ``conflict``.

    Returns:
        The figure's data; None without any tested example.
    """
    found = results.get("conflict") or {}
    level = text.number(found.get("level")) or 0.05
    kept: dict[tuple[str, str], list[Harmful]] = {}
    for row in found.get("examples") or []:
        own = kept.setdefault((str(row["on"]), str(row["by"])), [])
        if row.get("metric") != "plain" or len(own) == _SHOWN:
            continue
        keys = ("tokens", "harm", "statistic", "p", "q")
        numbers = {key: text.number(row.get(key)) for key in keys}
        q, harm = numbers["q"], numbers["harm"]
        sure = q is not None and q <= level and harm is not None and harm > 0
        own.append(
            Harmful(str(row["on"]), str(row["by"]), str(row["example"]), **numbers, found=sure)
        )
    rows = tuple(r for own in kept.values() for r in own)
    if not rows:
        return None
    counts = {
        (str(t["on"]), str(t["by"])): (int(t["n_found"]), int(t["n_tests"]))
        for t in found.get("tests") or []
        if t.get("metric") == "plain" and t.get("level") == "example"
    }
    tasks = tuple(sorted({name for pair in kept for name in pair}))
    return HarmfulData(tasks, rows, counts, level)


def _draw(data: HarmfulData) -> Any:
    with canvas.style("conflicting"):
        pairs = list(dict.fromkeys((r.on, r.by) for r in data.rows))
        height = _TOP + sum(_ROW * (1 + sum((r.on, r.by) == p for r in data.rows)) + 8
                            for p in pairs)  # fmt: skip
        figure = canvas.new_figure(height + 6)
        sheet = canvas.add_sheet(figure)
        looks = palette.series(data.tasks)
        largest = max((abs(r.statistic or 0.0) for r in data.rows), default=0.0) or 1.0
        bars, q_at = 420.0, canvas.WIDTH - 150.0
        for x, line in ((28, "example"), (bars, "harm, t"), (q_at, "q"), (q_at + 80, "tokens")):
            canvas.write(sheet, x, 12, line, size=11, color=palette.MUTED)
        y, boxes, fills, edges, tooltips = _TOP, [], [], [], []
        for on, by in pairs:
            n, of = data.counts.get((on, by), (0, 0))
            canvas.rectangles(sheet, [(8, y + 6, 9, 9)], looks[by].color)
            heading = f"{text.shorten([by], 24)[0]} against {text.shorten([on], 24)[0]}"
            canvas.write(sheet, 24, y + 11, heading, size=12.5, weight="bold")
            canvas.write(sheet, bars, y + 11, f"{n} of {of} found", size=11, color=palette.MUTED)
            y += _ROW
            for r in (r for r in data.rows if (r.on, r.by) == (on, by)):
                name = canvas.fit([r.example], bars - 50, 11.5)[0]
                canvas.write(sheet, 28, y + 10, name, size=11.5)
                length = _BAR * max(0.0, r.statistic or 0.0) / largest
                boxes.append((bars, y + 4, max(length, 1.0), 12.0))
                fills.append(looks[by].color if r.found else palette.CARD)
                edges.append(looks[by].color)
                words = text.pretty(r.statistic, 2)
                canvas.write(sheet, bars + length + 8, y + 10, words, size=11)
                canvas.write(sheet, q_at, y + 10, text.pretty(r.q, 2), size=11.5)
                tokens = text.MISSING if r.tokens is None else f"{r.tokens:,.0f}"
                canvas.write(sheet, q_at + 80, y + 10, tokens, size=11.5)
                tooltips.append(
                    f"{r.example} of {r.by} against {r.on}: harm {text.pretty(r.harm)}, "
                    f"p = {text.pretty(r.p, 2)}, q = {text.pretty(r.q, 2)}"
                )
                y += _ROW
            y += 8
        canvas.rectangles(sheet, boxes, fills, gid="bars", edgecolors=edges, linewidths=1.2)
        label = f"The most harmful examples. {data.caption()}"
        return canvas.to_svg(figure, name="conflicting", label=label, hover={"bars": tooltips})


FIGURE = FigureSpec(
    "conflicting",
    "Which examples hurt another task",
    build,
    lambda results: "The study tested no examples.",
)
