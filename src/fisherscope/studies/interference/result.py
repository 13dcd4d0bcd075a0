"""What tasks do to each other, and how well that was predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from fisherscope.results import Result
from fisherscope.studies.conflict import Conflict


@dataclass(frozen=True, eq=False)
class Interference(Result):
    """The damage matrix of several tasks, predicted beside measured.

    Attributes:
        unit_scale: The size of step, as a multiple of each task's own step, at which matrix,
            parts and asymmetry are shown.
        cells: One row per task ``on`` (watched), task ``by`` (which takes the step) and
            ``scale``: ``first``, ``second``, ``predicted`` and ``measured`` change of loss with
            95% intervals over examples, ``error``, one column per stored Fisher with what it
            predicts, ``step_norm``, ``n_examples``, ``n_tokens``; nats per token.
        layers: One row per ``on``, ``by`` and layer at ``unit_scale``: ``first`` and
            ``second`` order, the latter with cross terms.
        tensors: The same per parameter tensor.
        heads: The same per attention head; empty where the model has none.
        asymmetry: One row per pair of tasks: ``a``, ``b``, ``antisymmetric``
            (½ (damage of a by b − damage of b by a), predicted at ``unit_scale``) with a 95%
            interval over the examples of both, and ``outcome`` ``"ok"`` or ``"not_resolved"``.
            The same from measurement in ``measured``, ``measured_low``, ``measured_high``.
        calibration: One row per scale and method, and per method over all scales within the
            range (``scale`` missing), see :func:`fisherscope.studies.calibration.calibrate`.
        small: Largest scale that counts as a small step.
        reliable: Largest scale up to which, at every scale, the slope in full is within 0.8 to
            1.25; 0 if at none.
        conflict: Gradient conflict of tasks and of examples; ``None`` if it was not asked for.
    """

    unit_scale: float
    cells: pd.DataFrame
    layers: pd.DataFrame
    tensors: pd.DataFrame
    heads: pd.DataFrame
    asymmetry: pd.DataFrame
    calibration: pd.DataFrame
    small: float
    reliable: float
    conflict: Conflict | None

    def to_frame(self) -> pd.DataFrame:
        """The damage matrix.

        Returns:
            The rows of ``cells`` at ``unit_scale``.
        """
        rows = self.cells.to_dict("records")
        return pd.DataFrame([row for row in rows if row["scale"] == self.unit_scale])

    def matrix(self, column: str = "predicted") -> pd.DataFrame:
        """The damage matrix as a square.

        Args:
            column: What to show. Default: ``"predicted"``.

        Returns:
            Watched task by row, stepping task by column.
        """
        square = self.to_frame().pivot(index="on", columns="by", values=column)
        order = list(dict.fromkeys(self.cells["on"]))
        return square.loc[order, order]

    def findings(self) -> list[str]:
        """What was found, in sentences.

        Returns:
            The worst damage, the asymmetry, and how far the prediction holds.
        """
        others = [r for r in self.to_frame().to_dict("records") if r["on"] != r["by"]]
        lines = []
        if others:
            worst = max(others, key=lambda row: row["predicted"])
            sign = "costs" if worst["predicted"] > 0 else "at most saves"
            sure = (
                ""
                if worst["predicted_low"] * worst["predicted_high"] > 0
                else ", not resolved from zero"
            )
            said = (
                f"A step for {worst['by']} {sign} {worst['on']} "
                f"{abs(worst['predicted']):.3g} nats per token (predicted "
                f"[{worst['predicted_low']:.3g}, {worst['predicted_high']:.3g}]{sure}"
            )
            measured = worst["measured"]
            lines.append(said + (f"; measured {measured:.3g})." if measured == measured else ")."))
        for row in self.asymmetry.to_dict("records"):
            if row["outcome"] != "ok":
                continue
            hurt, by, low, high = row["a"], row["b"], row["low"], row["high"]
            if row["antisymmetric"] < 0:
                hurt, by, low, high = by, hurt, -high, -low
            lines.append(
                f"{hurt} is hurt more by {by} than the other way round: half the difference is "
                f"{abs(row['antisymmetric']):.3g} nats per token [{low:.3g}, {high:.3g}]."
            )
        if len(self.calibration):
            lines += self._calibrated()
        if self.conflict is not None:
            lines += self.conflict.findings()
        return lines

    def _calibrated(self) -> list[str]:
        small = [r for r in self.calibration.to_dict("records") if math.isnan(r["scale"])]
        full = next(row for row in small if row["method"] == "full")
        lines = [
            f"For steps up to {self.small:g} of a task's own, measured on predicted in full has "
            f"slope {full['slope']:.2f} [{full['slope_low']:.2f}, {full['slope_high']:.2f}] and "
            f"rank correlation {full['spearman']:.3f} [{full['spearman_low']:.3f}, "
            f"{full['spearman_high']:.3f}] over {full['n']:.0f} points; "
            + (
                f"the slope stays within 0.8 to 1.25 up to {self.reliable:g}."
                if self.reliable
                else "at no size of step is the slope within 0.8 to 1.25."
            )
        ]
        ranked = [row for row in small if not math.isnan(row["log_error"])]
        if ranked:
            ranked.sort(key=lambda row: row["log_error"])
            said = ", ".join(
                f"{row['method']} {row['log_error']:.2f} [{row['log_error_low']:.2f}, "
                f"{row['log_error_high']:.2f}]"
                for row in ranked
            )
            lines.append(f"Mean absolute log error of the curvature, best first: {said}.")
        return lines
