"""What would have helped: old tasks at equal loss of the new one, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from fisherscope.results import Result
from fisherscope.studies.remedies.arms import LABELS, NULLS, PLAIN
from fisherscope.studies.remedies.setting import MEAN

Outcome = Literal["ok", "no_progress"]


@dataclass(frozen=True, eq=False)
class Remedies(Result):
    """The same fine-tuning, plain and with each remedy and its null.

    Attributes:
        outcome: ``"ok"``, or ``"no_progress"``: plain fine-tuning gains nothing on the new task's
            held-out rows that their spread resolves, in any seed, so that there is nothing to be
            equal at; then no other arm was run.
        name: The new task.
        tasks: The old tasks.
        levels: Shares of what plain fine-tuning gains at its best, at which arms are compared.
        table: One row per arm, level and old task, and for the ``"mean"`` of the old tasks:
            ``of`` (the remedy that a null belongs to), ``loss`` of the old task where the new
            one's first falls to the level, and its ``increase`` over that before, means over the
            seeds that reach it with 95% intervals; ``outcome`` ``"reached"``,
            ``"reached_by_some"`` or ``"never_reached"``, with ``reached`` of ``n_seeds`` seeds;
            ``to_plain`` and ``to_null``, the difference to plain fine-tuning and to the remedy's
            own null, paired by seed, with interval, number of pairs (``_n``) and ``_verdict``:
            ``"better"`` (less), ``"worse"``, ``"not_resolved"``, ``"too_few_seeds"``, or nothing
            where there is no null. In nats per token. Intervals are Student's over seeds: what
            varies is order of the data, dropout, random masks and layers, first values of
            adapters; the rows do not.
        arms: One row per arm: ``label``, ``null``, ``trainable`` weights and ``bytes`` that are
            kept beside the model (means over seeds), ``final_new`` (loss of the new task at the
            end, with interval, over the seeds that did not diverge), ``diverged`` of
            ``n_seeds`` fine-tunings, ``skipped`` (why an arm was not run; else empty).
        runs: One row per fine-tuning: ``arm``, ``seed``, ``outcome`` (``"ok"`` or
            ``"diverged"``), ``steps`` up to its last finite measurement, ``final_new``,
            ``final_old`` (mean), ``trainable``, ``bytes``, ``modules`` with an adapter.
        curves: One row per fine-tuning, measurement and task: ``arm``, ``seed``, ``step``,
            ``task``, ``loss``.
        progress: One row per seed: ``start``, ``best`` and ``gain`` of plain fine-tuning on the
            new task, ``gain_low`` (end of its interval over rows), ``outcome``.
        modules: Linear layers, the least interfering first, as
            :func:`fisherscope.studies.remedies.placement.interference_of` ranks them, and whether
            each was ``chosen``; empty if LoRA was not run.
        settings: Everything that was set.
    """

    outcome: Outcome
    name: str
    tasks: tuple[str, ...]
    levels: tuple[float, ...]
    table: pd.DataFrame
    arms: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    progress: pd.DataFrame
    modules: pd.DataFrame
    settings: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Old losses at equal loss of the new task.

        Returns:
            ``table``.
        """
        return self.table.copy()

    def findings(self) -> list[str]:
        """What was found, in sentences.

        Returns:
            How many remedies help and which, then each remedy by itself, then what went wrong.
        """
        if self.outcome == "no_progress":
            return [
                f"Plain fine-tuning makes no progress on {self.name} that its held-out rows "
                "resolve, so there is no level to compare old tasks at.",
                *self._diverged(),
            ]
        tried = [arm for arm in NULLS if arm in set(self.table["arm"])]
        return [self._summary(tried), self._plain(), *map(self._sentence, tried), *self._troubles()]

    def compared(self, arm: str, to: Literal["plain", "null"]) -> dict[str, Any] | None:
        """A remedy's row, for the mean of the old tasks, at the highest level where it can be read.

        Args:
            arm: The remedy.
            to: What it is held against: ``"plain"`` or ``"null"``.

        Returns:
            The row of the highest level that at least two seeds of both reach (one, if no level
            has two); ``None`` where none does.
        """
        rows = [r for r in self._means(arm) if r[f"to_{to}_n"] > 0]
        return max(rows, key=lambda row: (row[f"to_{to}_n"] > 1, row["level"]), default=None)

    def _means(self, arm: str) -> list[dict[str, Any]]:
        rows = self.table.to_dict("records")
        return [row for row in rows if row["task"] == MEAN and row["arm"] == arm]

    def _better(self, arm: str, to: Literal["plain", "null"]) -> bool:
        row = self.compared(arm, to)
        return row is not None and row[f"to_{to}_verdict"] == "better"

    def _summary(self, tried: list[str]) -> str:
        if not tried:
            return f"No remedy was run beside plain fine-tuning on {self.name}."
        better = [arm for arm in tried if self._better(arm, "plain")]
        both = [LABELS[arm] for arm in better if self._better(arm, "null")]
        line = (
            f"{len(better)} of {len(tried)} remedies {'keeps' if len(better) == 1 else 'keep'} "
            f"{listed(self.tasks)} better than plain fine-tuning at equal loss of {self.name}"
        )
        if not better:
            return f"{line}."
        own = (
            f"of these, {listed(both)} also better than the null"
            if both
            else "none of these also better than its null"
        )
        return f"{line}: {listed([LABELS[arm] for arm in better])}; {own}."

    def _plain(self) -> str:
        row = max(self._means(PLAIN), key=lambda r: r["level"])
        return (
            f"At {row['level']:.0%} of its best progress on {self.name}, plain fine-tuning has "
            f"changed the mean loss of {listed(self.tasks)} by {row['increase']:+.3g} nats per "
            f"token{_interval(row, 'increase')}."
        )

    def _sentence(self, arm: str) -> str:
        label, null = LABELS[arm], LABELS[NULLS[arm]]
        row, beside = self.compared(arm, "plain"), self.compared(arm, "null")
        if row is None:
            lowest = min(self.levels)
            reached = [r["reached"] for r in self._means(NULLS[arm]) if r["level"] == lowest]
            also = "" if any(reached) else f", nor does its null ({null})"
            return (
                f"{label}: does not reach {lowest:.0%} of plain fine-tuning's progress on "
                f"{self.name} with any of {int(self.table['n_seeds'].iloc[0])} seeds{also}."
            )
        line = f"{label}: {self._where(row)} {_said(row, 'to_plain', 'plain fine-tuning')}"
        if beside is None:
            return f"{line}; its null ({null}) reaches no level that it reaches."
        where = "" if beside["level"] == row["level"] else f"{self._where(beside)} "
        return f"{line}; {where}{_said(beside, 'to_null', f'its null ({null})')}."

    def _where(self, row: dict[str, Any]) -> str:
        some = row["outcome"] == "reached_by_some"
        part = f" ({row['reached']} of {row['n_seeds']} seeds reach it)" if some else ""
        return f"at {row['level']:.0%} of plain fine-tuning's progress{part}"

    def _diverged(self) -> list[str]:
        return [
            f"{row['label']}: {row['diverged']} of {row['n_seeds']} fine-tunings diverged."
            for row in self.arms.to_dict("records")
            if row["diverged"]
        ]

    def _troubles(self) -> list[str]:
        lines = self._diverged()
        lines += [
            f"{row['label']} was not run: {row['skipped']}."
            for row in self.arms.to_dict("records")
            if row["skipped"]
        ]
        lost = [r["seed"] for r in self.progress.to_dict("records") if r["outcome"] != "ok"]
        if lost:
            lines.append(
                f"Plain fine-tuning makes no progress on {self.name} with seed "
                f"{listed([str(seed) for seed in lost])}; left out."
            )
        return lines


def _said(row: Mapping[str, Any], key: str, other: str) -> str:
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    match row[f"{key}_verdict"]:
        case "better":
            return f"loses {-value:.3g} nats per token less than {other} [{-high:.3g}, {-low:.3g}]"
        case "worse":
            return f"loses {value:.3g} nats per token more than {other} [{low:.3g}, {high:.3g}]"
        case "not_resolved":
            return (
                f"not told apart from {other} ({value:+.3g} nats per token [{low:.3g}, {high:.3g}])"
            )
    return f"{value:+.3g} nats per token against {other}, with too few seeds for an interval"


def _interval(row: Mapping[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f" [{low:.3g}, {high:.3g}]" if low == low else ""


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    Args:
        names: At least one.

    Returns:
        For example ``"code, prose and qa"``.
    """
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
