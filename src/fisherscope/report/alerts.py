"""What stands above the fold: the main finding, the headline numbers, the alerts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fisherscope.report import text
from fisherscope.report.figures import concentration, damage, palette, similarity

_MOST_LINES = 4


@dataclass(frozen=True)
class Line:
    """One task's number inside a tile.

    Attributes:
        name: Task name, shortened.
        value: The number with its error.
        series: CSS class of the task's colour.
    """

    name: str
    value: str
    series: str


@dataclass(frozen=True)
class Tile:
    """One headline number.

    Attributes:
        title: What it is.
        value: The number, or its range over tasks.
        error: Its error or interval, or what stands for it.
        lines: The number per task, where there are several.
        link: Section that it comes from.
    """

    title: str
    value: str
    error: str
    lines: tuple[Line, ...]
    link: str


@dataclass(frozen=True)
class Alert:
    """One thing that a reader must know before believing the numbers.

    Attributes:
        level: ``"red"`` or ``"amber"``.
        rule: Name of the rule.
        message: What was found, with its number, and what to do.
        link: Section that it concerns, or empty.
    """

    level: str
    rule: str
    message: str
    link: str


def alerts(results: Mapping[str, Any], sections: Sequence[str]) -> list[Alert]:
    """Alerts of the run, red ones first.

    Args:
        results: A results dictionary.
        sections: Anchors that exist in the page; other links are dropped.

    Returns:
        The alerts.
    """
    found = []
    for row in results.get("alerts") or []:
        link = str(row.get("link") or "")
        known = re.fullmatch(r"#([\w-]+)", link)
        found.append(
            Alert(
                level="red" if row.get("level") == "red" else "amber",
                rule=str(row.get("rule") or ""),
                message=str(row.get("message") or row.get("rule") or "unnamed alert"),
                link=link if known and known[1] in sections else "",
            )
        )
    return sorted(found, key=lambda alert: alert.level != "red")


def headline(results: Mapping[str, Any]) -> tuple[str, str]:
    """The main finding, and what else to know.

    Args:
        results: A results dictionary.

    Returns:
        One sentence, then the rest of the lead; the latter may be empty.
    """
    sentences = list(_findings(results))
    if not sentences:
        return f"{text.plural(len(results['tasks']), 'task')} analysed.", ""
    return sentences[0], " ".join(sentences[1:3])


def _findings(results: Mapping[str, Any]) -> Iterator[str]:
    # The one that matters most comes first.
    hurt = damage.build(results)
    worst = hurt.worst() if hurt else None
    if hurt and worst:
        kind = "measured" if worst.measured is not None else "predicted"
        value = worst.value(kind)[0] or 0.0
        if value > 0 and worst.clear(kind):
            foreseen = ""
            if kind == "measured" and worst.predicted is not None:
                foreseen = f" (predicted {text.plus_minus(*worst.estimate('predicted'))})"
            yield (
                f"A step for {text.spoken(worst.by)} costs {text.spoken(worst.on)} "
                f"{text.plus_minus(*worst.estimate(kind))} {hurt.unit}"
                f"{foreseen}, the largest of {text.plural(_others(hurt), 'interaction')}."
            )
        else:
            yield (
                f"No step for one task does {kind} harm to another: the largest change is "
                f"{worst.describe(kind)} {hurt.unit}, to {text.spoken(worst.on)} by a step for "
                f"{text.spoken(worst.by)}."
            )
        r, error = hurt.correlation()
        if r is not None and len(hurt.both()) > 3:
            yield f"Prediction and measurement correlate at {text.plus_minus(r, error)}."
    alike = similarity.build(results)
    if alike and alike.ranked():
        first = alike.ranked()[0]
        yield (
            f"{first.words} are the most alike "
            f"({similarity.METRICS.get(alike.metric, alike.metric).lower()} "
            f"{similarity.describe(first)})."
        )
    curves = concentration.build(results)
    if curves:
        known = sorted(v for c in curves.curves if (v := c.at(0.01)[0]) is not None)
        if len(known) == 1:
            yield curves.caption()
        elif known:
            ends = [text.percent(known[i]) for i in (0, -1)]
            held = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
            yield f"The top 1% of {curves.noun} hold {held} of the trace."
    task = results["tasks"][0] if results["tasks"] else {}
    trace, error = text.number(task.get("trace")), text.number(task.get("trace_se"))
    if trace is not None:
        shown = text.plus_minus(trace, error)
        yield f"The Fisher of {text.spoken(task['name'])} has a trace of {shown}."


def _others(data: damage.DamageData) -> int:
    return sum(cell.on != cell.by for cell in data.cells)


def tiles(results: Mapping[str, Any]) -> list[Tile]:
    """The headline numbers, each with its uncertainty.

    Args:
        results: A results dictionary.

    Returns:
        At most five tiles.
    """
    makers = (_size, _top, _repeatable, _alike, _foreseen, _loss, _spread)
    made = (make(results) for make in makers)
    return [tile for tile in made if tile is not None][:5]


def _size(results: Mapping[str, Any]) -> Tile | None:
    def read(task: Mapping[str, Any]) -> tuple[float | None, float | None]:
        mean = text.number(task.get("mean_fisher"))
        trace, error = text.number(task.get("trace")), text.number(task.get("trace_se"))
        if mean is None or mean <= 0:
            return None, None
        relative = error / trace if trace and error is not None else None
        return math.log10(mean), None if relative is None else relative / math.log(10)

    return _per_task(results, "Mean Fisher per parameter, log10", read, text.plus_minus, "tasks")


def _top(results: Mapping[str, Any]) -> Tile | None:
    data = concentration.build(results)
    if data is None:
        return None
    looks = palette.series(data.order)
    read = [(curve.task, *curve.at(0.01)) for curve in data.curves]
    known = sorted((row for row in read if row[1] is not None), key=lambda row: -(row[1] or 0.0))
    if not known:
        return None
    halves = any(low is not None for _, _, low, _ in known)
    chosen = _extremes(known)
    labels = text.shorten([name for name, *_ in chosen], 14)
    lines = tuple(
        Line(label, text.percent(mass) + _unseen(low, high), f"s{looks[name].index}")
        for label, (name, mass, low, high) in zip(labels, chosen, strict=True)
    )
    value = _range(text.percent(known[-1][1]), text.percent(known[0][1]))
    note = "in brackets: in unseen data" if halves else "no halves, no unseen data"
    if len(known) == 1 and halves:
        note, lines = f"{_unseen(*known[0][2:]).strip(' ()')} in unseen data", ()
    return Tile("Trace held by the top 1%", value, note, lines, "concentration")


def _unseen(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" ({100 * low:.0f}–{100 * high:.0f}%)"


def _range(low: str, high: str) -> str:
    return high if low == high else f"{low} … {high}"


def _extremes(rows: Sequence[Any]) -> list[Any]:
    half = _MOST_LINES // 2
    return list(rows) if len(rows) <= _MOST_LINES else [*rows[:half], *rows[-half:]]


def _repeatable(results: Mapping[str, Any]) -> Tile | None:
    def read(task: Mapping[str, Any]) -> tuple[float | None, float | None]:
        return text.number(task.get("split_half_spearman")), None

    def show(value: float | None, error: float | None, coarsest: float = 0.0) -> str:
        del error, coarsest
        return text.MISSING if value is None else f"{value:.2f}".replace("-", "\u2212")

    return _per_task(
        results,
        "Split-half rank agreement",
        read,
        show,
        "tasks",
        "two disjoint halves; 1 is perfect",
    )


def _loss(results: Mapping[str, Any]) -> Tile | None:
    def read(task: Mapping[str, Any]) -> tuple[float | None, float | None]:
        return text.number(task.get("loss")), text.number(task.get("loss_se"))

    return _per_task(results, "Loss, nats", read, text.plus_minus, "tasks")


def _spread(results: Mapping[str, Any]) -> Tile | None:
    grouped = (results.get("settings") or {}).get("structure") == "grouped"
    total = None if grouped else text.number((results.get("model") or {}).get("n_parameters"))

    def read(task: Mapping[str, Any]) -> tuple[float | None, float | None]:
        value = text.number(task.get("participation"))
        return (value / total if value is not None and total else None), None

    return _per_task(
        results,
        "Participation ratio",
        read,
        text.percent,
        "tasks",
        "of all parameters; no interval",
    )


def _per_task(
    results: Mapping[str, Any], title: str, read: Any, show: Any, link: str, note: str = ""
) -> Tile | None:
    # The value of the only task, or the range over tasks with a line for each.
    names = palette.task_names(results)
    looks = palette.series(names)
    found = [(task["name"], *read(task)) for task in results["tasks"]]
    known = sorted((row for row in found if row[1] is not None), key=lambda row: -row[1])
    if not known:
        return None
    errors = [error for _, _, error in known if error is not None]
    if len(known) == 1:
        shown = show(known[0][1], known[0][2])
        value, mark, error = shown.partition(" ± ")
        return Tile(title, value, f"± {error}" if mark else note or "no interval", (), link)
    low, high = show(known[-1][1], None), show(known[0][1], None)
    if title.endswith("log10"):
        low, high = (f"{known[i][1]:.2f}".replace("-", "\u2212") for i in (-1, 0))
    chosen = _extremes(known)
    labels = text.shorten([name for name, _, _ in chosen], 14)
    coarsest = max(errors, default=0.0)
    lines = tuple(
        Line(label, show(value, error, coarsest=coarsest), f"s{looks[name].index}")
        for label, (name, value, error) in zip(labels, chosen, strict=True)
    )
    if not note:
        note = f"range over {len(known)} tasks" if errors else "no interval"
    elif len(known) > _MOST_LINES:
        note = f"{note}; extremes of {len(known)} tasks"
    return Tile(title, _range(low, high), note, lines, link)


def _alike(results: Mapping[str, Any]) -> Tile | None:
    data = similarity.build(results)
    ranked = data.ranked() if data else []
    if not data or not ranked:
        return None
    looks = palette.series(data.tasks)
    values = [pair.value or 0.0 for pair in ranked]
    mean = sum(values) / len(values)
    note = []
    for key, name in (("floor", "floor"), ("ceiling", "ceiling")):
        known = [v for pair in ranked if (v := getattr(pair, key)) is not None]
        if known:
            note.append(f"{name} {sum(known) / len(known):.2f}".replace("-", "\u2212"))
    chosen = ranked if len(ranked) <= 3 else [ranked[0], ranked[-1]]
    lines = tuple(
        Line(
            " – ".join(text.shorten((pair.task_a, pair.task_b), 8)),
            text.pretty(pair.value, 2),
            f"s{looks[pair.task_a].index}",
        )
        for pair in chosen
    )
    title = f"{similarity.METRICS.get(data.metric, data.metric)} of tasks"
    title += ", mean" if len(ranked) > 1 else ""
    shown = text.significant(mean, 2).replace("-", "\u2212")
    return Tile(title, shown, ", ".join(note) or "no floor or ceiling", lines, "similarity")


def _foreseen(results: Mapping[str, Any]) -> Tile | None:
    data = damage.build(results)
    r, error = data.correlation() if data else (None, None)
    if not data or r is None:
        return None
    right, clear = data.signs()
    shown = text.plus_minus(r, error)
    value, mark, rest = shown.partition(" ± ")
    note = f"± {rest}" if mark else "no interval: fewer than 3 steps"
    lines = [Line("cells", str(len(data.both())), "")]
    lines.append(Line("right sign", f"{right} of {clear} clear", ""))
    caught = data.caught()
    if caught is not None:
        lines.append(Line("stored Fisher gives", text.percent(caught), ""))
    return Tile("Damage: predicted vs measured, r", value, note, tuple(lines), "damage")
