"""What fine-tuning has cost, and what was predicted of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fisherscope.results import Result

Outcome = Literal["ok", "no_displacement"]


@dataclass(frozen=True, eq=False)
class Forgetting(Result):
    """Predicted beside measured, per task.

    Attributes:
        outcome: ``"ok"``, or ``"no_displacement"`` if no weight differs; all is zero then.
        stages: One row per task and stage (checkpoints in their order, then ``"tuned"``):
            ``loss`` and ``accuracy`` after, ``loss_change``, ``accuracy_change``, ``kl`` (from
            base to stage, nats per token) with 95% intervals over examples (paired), ``first``,
            ``second``, ``predicted`` in full, ``remainder`` (measured − predicted),
            ``empirical`` (second order with the data's labels), one column per stored structure
            with what it predicts, ``norm`` of the displacement, ``n_examples``, ``n_tokens``.
        path: One row per task and t in [0, 1] along the straight line from base to tuned, as
            :attr:`fisherscope.Damage.table` has them.
        layers: One row per task and layer: ``first`` and ``second`` order of the whole
            displacement, the latter with cross terms, nats per token.
        tensors: The same per parameter tensor.
        calibration: One row per method over all tasks and all t (``scale`` missing), and one
            per method and t (``scale``), see :func:`fisherscope.studies.calibration.calibrate`.
    """

    outcome: Outcome
    stages: pd.DataFrame
    path: pd.DataFrame
    layers: pd.DataFrame
    tensors: pd.DataFrame
    calibration: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """Predictions beside measurements for the whole displacement.

        Returns:
            The last stage of each task.
        """
        last = self.stages["stage"].iloc[-1]
        return pd.DataFrame([r for r in self.stages.to_dict("records") if r["stage"] == last])

    def findings(self) -> list[str]:
        """What was found, in sentences.

        Returns:
            One sentence per task, the most forgotten first, then how well it was predicted.
        """
        if self.outcome == "no_displacement":
            return ["Nothing has moved: the two models have the same weights."]
        lines = []
        for row in self.to_frame().sort_values("loss_change", ascending=False).to_dict("records"):
            low, high, change = row["loss_change_low"], row["loss_change_high"], row["loss_change"]
            verb = "forgot" if low > 0 else "gained" if high < 0 else "moved by"
            sure = "" if verb != "moved by" else ", which is not resolved"
            lines.append(
                f"{row['task']}: {verb} {abs(change) if sure == '' else change:.3g} nats per token "
                f"[{low:.3g}, {high:.3g}]{sure}; predicted in full {row['predicted']:.3g}, "
                f"KL to base {row['kl']:.3g}{_points(row['accuracy_change'])}."
            )
        overall = [r for r in self.calibration.to_dict("records") if math.isnan(r["scale"])]
        ranked = [row for row in overall if not math.isnan(row["log_error"])]
        if ranked:
            ranked.sort(key=lambda row: row["log_error"])
            ranking = ", ".join(
                f"{row['method']} {row['log_error']:.2f} [{row['log_error_low']:.2f}, "
                f"{row['log_error_high']:.2f}]"
                for row in ranked
            )
            lines.append(f"Mean absolute log error of the curvature, best first: {ranking}.")
        full = next(row for row in overall if row["method"] == "full")
        lines.append(
            f"In full, measured against predicted along the path has slope {full['slope']:.2f} "
            f"[{full['slope_low']:.2f}, {full['slope_high']:.2f}] and rank correlation "
            f"{full['spearman']:.2f} over {full['n']:.0f} points."
        )
        return lines


def _points(change: float) -> str:
    return "" if math.isnan(change) else f", accuracy {100 * change:+.1f} points"
