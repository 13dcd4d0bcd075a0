"""What would have helped: old tasks at equal loss of the new one, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping
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
            ``"better"`` (less), ``"worse"``, ``"not_resolved"``, ``"too_few_seeds"``. In nats
            per token. Intervals are Student's over seeds: what varies is order of the data,
            dropout, random masks and layers, first values of adapters; the rows do not.
        arms: One row per arm: ``label``, ``null``, ``trainable`` weights and ``bytes`` that are
            kept beside the model (means over seeds), ``final_new`` (loss of the new task at the
            end, with interval, over the seeds that did not diverge), ``diverged`` of
            ``n_seeds`` fine-tunings, ``skipped`` (why an arm was not run, or ``None``).
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
                "resolve, so there is no level to compare old tasks at."
            ]
        rows = {arm: self._last(arm) for arm in NULLS if arm in set(self.table["arm"])}
        lines = [self._summary(rows), self._plain()]
        lines += [self._sentence(arm, row) for arm, row in rows.items()]
        lines += self._troubles()
        return [line for line in lines if line]

    def _means(self) -> list[dict[str, Any]]:
        return [row for row in self.table.to_dict("records") if row["task"] == MEAN]

    def _last(self, arm: str) -> dict[str, Any] | None:
        """The highest level at which an arm can be held against plain fine-tuning at all."""
        rows = [r for r in self._means() if r["arm"] == arm and r["to_plain_n"] > 0]
        return max(rows, key=lambda row: (row["to_plain_n"] > 1, row["level"]), default=None)

    def _summary(self, rows: Mapping[str, dict[str, Any] | None]) -> str:
        found = {arm: row for arm, row in rows.items() if row is not None}
        better = [arm for arm, row in found.items() if row["to_plain_verdict"] == "better"]
        both = [arm for arm in better if found[arm]["to_null_verdict"] == "better"]
        said = _listed([LABELS[arm] for arm in better])
        line = (
            f"{len(better)} of {len(rows)} remedies {_verb(len(better), 'keep')} {self._kept()} "
            f"better than plain fine-tuning at equal loss of {self.name}"
        )
        if not better:
            return f"{line}."
        own = _listed([LABELS[arm] for arm in both])
        return f"{line} ({said}); better than {_own(both)} null as well: {own or 'none'}."

    def _kept(self) -> str:
        return _listed(list(self.tasks))

    def _plain(self) -> str:
        rows = [row for row in self._means() if row["arm"] == PLAIN]
        row = max(rows, key=lambda r: r["level"])
        return (
            f"At {row['level']:.0%} of its best progress on {self.name}, plain fine-tuning has "
            f"raised the mean loss of {self._kept()} by {row['increase']:.3g} nats per token"
            f"{_interval(row, 'increase')}."
        )

    def _sentence(self, arm: str, row: dict[str, Any] | None) -> str:
        label = LABELS[arm]
        if row is None:
            return (
                f"{label} never reaches {min(self.levels):.0%} of plain fine-tuning's progress on "
                f"{self.name} in any of {self._seeds()} seeds."
            )
        line = (
            f"{label}, at {row['level']:.0%} of plain fine-tuning's progress"
            f"{self._partly(row)}: {_said(row, 'to_plain')} plain fine-tuning"
        )
        null = LABELS[NULLS[arm]]
        if not row["to_null_n"]:
            return f"{line}; its null ({null}) never reaches that level."
        return f"{line}; {_said(row, 'to_null')} its null ({null})."

    def _seeds(self) -> int:
        return int(self.table["n_seeds"].iloc[0])

    def _partly(self, row: dict[str, Any]) -> str:
        higher = [level for level in self.levels if level > row["level"]]
        part = (
            ""
            if row["outcome"] == "reached"
            else f", reached by {row['reached']} of {row['n_seeds']} seeds"
        )
        return part + (f", {min(higher):.0%} being out of reach" if higher else "")

    def _troubles(self) -> list[str]:
        lines = []
        for row in self.arms.to_dict("records"):
            if row["diverged"]:
                lines.append(
                    f"{row['label']}: {row['diverged']} of {row['n_seeds']} fine-tunings diverged."
                )
            if row["skipped"]:
                lines.append(f"{row['label']} was not run: {row['skipped']}.")
        lost = [r["seed"] for r in self.progress.to_dict("records") if r["outcome"] != "ok"]
        if lost:
            lines.append(
                f"Plain fine-tuning makes no progress on {self.name} with seed "
                f"{_listed([str(seed) for seed in lost])}; left out."
            )
        return lines


def _said(row: Mapping[str, Any], key: str) -> str:
    value, verdict = row[key], row[f"{key}_verdict"]
    by = f"{abs(value):.3g} nats per token"
    if verdict == "better":
        return f"{by} less is lost than with{_interval(row, key)}".replace(" with[", " [")
    if verdict == "worse":
        return f"{by} more is lost than with{_interval(row, key)}"
    if verdict == "too_few_seeds":
        return f"{value:+.3g} nats per token, with too few seeds for an interval, against"
    return f"{value:+.3g} nats per token{_interval(row, key)}, not resolved, against"


def _interval(row: Mapping[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f" [{low:.3g}, {high:.3g}]" if low == low else ""


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _verb(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb


def _own(arms: list[str]) -> str:
    return "its own" if len(arms) == 1 else "their own"
