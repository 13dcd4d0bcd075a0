"""What a brittleness study has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from fisherscope.results import Result
from fisherscope.studies.brittleness.request import ALL

Outcome = Literal["ok", "no_progress", "diverged"]
# Rates farther apart than this say more about a damage than the model does.
_FAR = 2.0


@dataclass(frozen=True, eq=False)
class Brittleness(Result):
    """What the same fine-tuning costs several models, at equal progress on the new task.

    Progress and damage are changes of mean losses since the start, in nats per token. Intervals
    are 95%.

    Attributes:
        outcome: ``"ok"``; ``"no_progress"`` if a model's held-out loss of the new task falls at
            no rate (no run is compared then); ``"diverged"`` if no pair of models has three
            seeds that came through.
        reference: The model that the others are compared with.
        goal: The progress that rates were matched for.
        stuck: Models that made no progress.
        ratios: A row per other model, criterion (``"progress"``, ``"level"``, ``"same_rate"``)
            and task, ``"all"`` for the mean of their damages: ``ratio``, ``damage``,
            ``reference_damage``, ``difference``, ``progress``, ``reference_progress``, each with
            ``_low`` and ``_high`` over seeds and examples; ``at`` (the progress, or the loss of
            the new task, that both are read at), ``n_seeds``, ``n_diverged``, ``n_examples``,
            ``outcome``: ``"more_brittle"``, ``"less_brittle"``, ``"not_resolved"``,
            ``"no_damage"`` (that of the reference is not resolved above zero, so that a ratio says
            nothing), ``"no_progress"``, ``"diverged"``.
        curves: A row per model, arm (``"matched"`` or ``"same_rate"``), task and step:
            ``progress`` and ``damage`` with intervals, ``new_loss``, ``loss``.
        collapse: A row per model, arm and task: ``step`` with ``low`` and ``high`` (infinite
            beyond the run), ``lost`` at the end, ``collapsed`` of ``runs``, ``outcome``: ``"ok"``,
            ``"not_reached"``, ``"no_better_than_uninformed"``, ``"diverged"``.
        geometry: A row per model, task and step of the matched runs: ``trace`` (per token),
            ``top`` (share of the trace in the top 1% of the coordinates), ``first``, ``second``,
            ``measured``, ``curvature_share``, ``of_measured``, with intervals over seeds.
        rates: A row per run of the search: ``model``, ``rate``, ``progress``, ``stage``,
            ``chosen``.
        runs: A row per model, arm, seed, task and step: ``loss``.
        training: A row per model, arm and seed: ``rate``, ``progress`` at the end, ``outcome``.
    """

    outcome: Outcome
    reference: str
    goal: float
    stuck: tuple[str, ...]
    ratios: pd.DataFrame
    curves: pd.DataFrame
    collapse: pd.DataFrame
    geometry: pd.DataFrame
    rates: pd.DataFrame
    runs: pd.DataFrame
    training: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The ratios.

        Returns:
            A new data frame.
        """
        return self.ratios.copy()

    def ratio(
        self, model: str | None = None, *, task: str = ALL, criterion: str = "progress"
    ) -> dict[str, Any]:
        """The one number, with its interval and outcome.

        Args:
            model: Which model against the first. Default: ``None``, the second.
            task: Which old task. Default: ``"all"``.
            criterion: ``"progress"``, ``"level"`` or ``"same_rate"``. Default: ``"progress"``.

        Returns:
            A row of ``ratios``; empty if there is none.
        """
        rows = self.ratios.to_dict("records")
        found = [r for r in rows if (r["task"], r["criterion"]) == (task, criterion)]
        return next((r for r in found if model in {None, r["model"]}), {})

    def findings(self) -> list[str]:
        """What was found, in sentences.

        Returns:
            The ratio of each other model first, then what stands beside it.
        """
        if self.outcome == "no_progress":
            which = " and ".join(self.stuck)
            return [
                f"There is no ratio: the held-out loss of the new task falls at no rate for "
                f"{which}. Try other rates, more steps or more rows."
            ]
        rows = self.ratios.to_dict("records")
        whole = [r for r in rows if r["task"] == ALL]
        lines = [_headline(r) for r in whole if r["criterion"] == "progress"]
        lines += [_beside(r) for r in whole if r["criterion"] != "progress"]
        lines += _rates(self.rates)
        # Of a single task the ratio of all has said it.
        alone = len({r["task"] for r in rows}) < 3
        each = [r for r in rows if r["task"] != ALL and r["criterion"] == "progress"]
        lines += [] if alone else [_task(r) for r in each]
        return [*lines, *_diverged(self.training), *_why(self), *_collapsed(self.collapse)]


def _headline(row: dict[str, Any]) -> str:
    model, reference = row["model"], row["reference"]
    if row["outcome"] == "diverged":
        return (
            f"There is no ratio: {row['n_seeds']} of {row['n_seeds'] + row['n_diverged']} seeds "
            f"came through for both {model} and {reference}; the others diverged."
        )
    if row["outcome"] == "no_progress":
        return f"There is no ratio: {model} and {reference} make no common progress."
    costs = (
        f"where both have learnt {row['at']:.3g} nats per token of the new task, the old tasks "
        f"have lost {_spread(row, 'damage')} nats per token in {model} and "
        f"{_spread(row, 'reference_damage')} in {reference}"
    )
    if row["outcome"] == "no_damage":
        less, more = row["difference_high"] < 0, row["difference_low"] > 0
        if not (less or more):
            return (
                f"{model} and {reference} are not told apart: {costs}. The difference, "
                f"{_spread(row, 'difference')}, is not resolved; there is no ratio, as what "
                f"{reference} lost is not told apart from zero."
            )
        return (
            f"{model} loses {'less' if less else 'more'} than {reference}: {costs}. The "
            f"difference, {_spread(row, 'difference')}, is resolved; there is no ratio, as what "
            f"{reference} lost is not told apart from zero."
        )
    if row["outcome"] == "not_resolved":
        return (
            f"{model} and {reference} are not told apart: brittleness ratio {_spread(row, 'ratio')}"
            f"; {costs}. The interval of the ratio includes 1, so the difference is not resolved."
        )
    word = "more" if row["outcome"] == "more_brittle" else "less"
    return (
        f"{model} is {word} brittle than {reference}: brittleness ratio {_spread(row, 'ratio')}; "
        f"{costs}. The interval of the ratio leaves out 1, so the difference is resolved."
    )


def _rates(table: pd.DataFrame) -> list[str]:
    chosen = {r["model"]: r["rate"] for r in table.to_dict("records") if r["chosen"]}
    if not chosen:
        return []
    line = "Matched rates: " + ", ".join(f"{model} {rate:.3g}" for model, rate in chosen.items())
    factor = max(chosen.values()) / min(chosen.values())
    if factor > _FAR:
        line += (
            f". They differ by a factor of {factor:.2g}, so that the runs differ in how violent "
            "their steps are and not only in the model: read the ratio beside that at equal rates"
        )
    return [line + "."]


def _beside(row: dict[str, Any]) -> str:
    where = {
        "level": "At an equal loss of the new task",
        "same_rate": f"At the rate of {row['reference']}, after the same steps",
    }[row["criterion"]]
    more = ""
    if row["criterion"] == "same_rate" and row["outcome"] != "diverged":
        more = (
            f" ({row['model']} has learnt {row['progress']:.3g} nats per token there, "
            f"{row['reference']} {row['reference_progress']:.3g})"
        )
    return f"{where}{more} the ratio is {_said(row)}."


def _task(row: dict[str, Any]) -> str:
    return f"{row['task']}, at equal progress: ratio of {row['model']} {_said(row)}."


def _said(row: dict[str, Any]) -> str:
    if row["outcome"] == "no_damage":
        return (
            f"not defined, as what {row['reference']} lost is not told apart from zero; the "
            f"difference is {_spread(row, 'difference')}"
        )
    if row["outcome"] in {"diverged", "no_progress"}:
        return f"not defined ({row['outcome'].replace('_', ' ')})"
    sure = ", not resolved" if row["outcome"] == "not_resolved" else ""
    return f"{_spread(row, 'ratio')}{sure}"


def _diverged(training: pd.DataFrame) -> list[str]:
    counts: dict[tuple[str, str], list[bool]] = {}
    for row in training.to_dict("records"):
        counts.setdefault((row["model"], row["arm"]), []).append(row["outcome"] != "ok")
    return [
        f"{model} diverged in {sum(lost)} of {len(lost)} runs ({arm.replace('_', ' ')}); their "
        "seeds are left out of the ratios."
        for (model, arm), lost in counts.items()
        if any(lost)
    ]


def _why(found: Brittleness) -> list[str]:
    rows = found.geometry.to_dict("records")
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        start = [row for row in own if row["step"] == 0]
        traces = ", ".join(f"{r['model']} {r['trace']:.4g}" for r in start)
        tops = ", ".join(f"{r['model']} {100 * r['top']:.3g}%" for r in start)
        line = f"{task}: Fisher trace per token at the start {traces}; held by its top 1% {tops}"
        end = max(row["step"] for row in own)
        last = [row for row in own if row["step"] == end]
        if end:
            shares = ", ".join(f"{r['model']} {_spread(r, 'curvature_share')}" for r in last)
            line += f"; share of the curvature in the predicted damage at the end {shares}"
        lines.append(line + ".")
    return lines


def _collapsed(table: pd.DataFrame) -> list[str]:
    rows = [r for r in table.to_dict("records") if r["arm"] == "matched"]
    if rows and all(r["outcome"] == "not_reached" for r in rows):
        most = max(rows, key=lambda r: r["lost"])
        return [
            f"No old task collapses within the matched runs; {most['task']} of {most['model']} "
            f"goes furthest, {100 * most['lost']:.2g}% of the way to uninformed."
        ]
    return [
        f"{r['task']} collapses in {r['model']} after {r['step']:.3g} steps [{r['low']:.3g}, "
        f"{r['high']:.3g}], in {r['collapsed']} of {r['runs']} runs."
        for r in rows
        if r["outcome"] == "ok"
    ]


def _spread(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g} [{row[f'{key}_low']:.3g}, {row[f'{key}_high']:.3g}]"
