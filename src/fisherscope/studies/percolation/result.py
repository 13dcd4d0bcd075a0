"""What a percolation study found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fisherscope.results import Result, plain
from fisherscope.studies.percolation.bench import Change
from fisherscope.studies.percolation.functional import Curve
from fisherscope.studies.percolation.plan import PercolationPlan
from fisherscope.studies.percolation.sentences import sentences
from fisherscope.studies.percolation.threshold import fall, labels
from fisherscope.studies.percolation.watch import CORRECT, DIVERGENCE, LOSS, Task, Watch

MODEL = "model"
TABLES = (
    "intact", "thresholds", "curves", "plane", "line", "critical", "structural", "structure"
)  # fmt: skip
_NOTHING = Change()


@dataclass(frozen=True, eq=False)
class Percolation(Result):
    """Removal curves and thresholds of one model, or of several side by side.

    In every table ``model`` is the model, ``level`` what is removed, ``removal`` how, ``order``
    the rule, ``by`` the task that the order was read from (empty if it knows of none), and ``on``
    the task that is watched. Losses and divergences are in nats per token. Intervals are 95%
    bootstrap intervals over examples and repetitions.

    Attributes:
        intact: One row per task: loss with its interval, accuracy, the uninformed
            loss, counts, and the outcome ``no_better_than_uninformed`` or ``ok``.
        thresholds: One row per curve, task and quantity: ``value``, ``low``, ``high`` (infinite
            where that limit lies beyond the curve) and ``outcome``; see :func:`percolation`.
        curves: One row per curve, task and fraction.
        plane: Loss when noise of one length is spread over the top fraction of the weights.
        line: For each fraction, the smallest length of noise that loses the task.
        critical: One row per candidate: what its exact removal costs, and its rank in each order.
        structural: The neuron graph: one row per order and fraction of bonds removed.
        structure: Thresholds of the neuron graph.
        plan: What it was expected to cost; model to plan.
        differences: Two models compared, see :func:`fisherscope.compare_percolation`; empty for
            one model.
        notes: What could not be done, and why.
        seed: Keyed everything random.
        measured: The curves with all examples; not part of :meth:`to_dict`.
        tasks: The tasks of each model; not part of :meth:`to_dict`.
    """

    intact: pd.DataFrame
    thresholds: pd.DataFrame
    curves: pd.DataFrame
    plane: pd.DataFrame
    line: pd.DataFrame
    critical: pd.DataFrame
    structural: pd.DataFrame
    structure: pd.DataFrame
    plan: dict[str, PercolationPlan]
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    seed: int = 0
    measured: dict[str, tuple[Curve, ...]] = field(default_factory=dict, repr=False)
    tasks: dict[str, dict[str, Task]] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The thresholds.

        Returns:
            A copy of ``thresholds``.
        """
        return self.thresholds.copy()

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain values.

        Returns:
            One entry per table, the plan and the notes.
        """
        kept = {k: v for k, v in vars(self).items() if k not in {"measured", "tasks"}}
        return plain(kept)

    def findings(self) -> list[str]:
        """What was found, in sentences with numbers, the main one first.

        Returns:
            Plain text.
        """
        return sentences(self)


def intact_frame(watch: Watch, seed: int) -> pd.DataFrame:
    """The tasks before anything was removed.

    Args:
        watch: The tasks.
        seed: Keys the resampling.

    Returns:
        One row per task.
    """
    rows = []
    for name, task in watch.tasks.items():
        sums = watch.intact[name][None, None]
        still = Curve("", _NOTHING, "", "", np.zeros(1, dtype=np.int64), 1, {name: sums})
        fell = fall(still, task, seed)
        low, high = np.quantile(fell.mean[1:, 0], [0.025, 0.975])
        total = task.tokens.sum()
        rows.append({
            "task": name,
            "loss": watch.intact[name][LOSS].sum() / total,
            "low": low,
            "high": high,
            "accuracy": watch.intact[name][CORRECT].sum() / total,
            "uninformed": task.uninformed,
            "n_examples": len(task.ids),
            "n_tokens": int(total),
            "outcome": "ok" if fell.informed else "no_better_than_uninformed",
        })
    return pd.DataFrame(rows)


def curves_frame(curves: Sequence[Curve], tasks: Mapping[str, Task], seed: int) -> pd.DataFrame:
    """All points of all curves.

    Args:
        curves: The curves.
        tasks: The tasks.
        seed: Keys the resampling.

    Returns:
        One row per curve, task and fraction, means over the repetitions.
    """
    rows = []
    for curve in curves:
        for name, task in tasks.items():
            fell = fall(curve, task, seed)
            low, high = np.quantile(fell.mean[1:], [0.025, 0.975], axis=0)
            with np.errstate(invalid="ignore"):
                means = curve.sums[name].sum(-1).mean(0) / task.tokens.sum()
            rows += [
                {
                    **labels(curve),
                    "on": name,
                    "removed": int(removed),
                    "fraction": removed / curve.count,
                    "loss": means[i, LOSS],
                    "low": low[i],
                    "high": high[i],
                    "accuracy": means[i, CORRECT],
                    "kl": means[i, DIVERGENCE],
                    "repetitions": fell.losses.shape[1],
                }
                for i, removed in enumerate(curve.removed)
            ]
    return pd.DataFrame(rows)
