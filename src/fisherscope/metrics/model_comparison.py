"""How models differ on the same tasks: loss, curvature, concentration, places, damage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fisherscope.analysis import Damage, similarity
from fisherscope.errors import ParameterError
from fisherscope.metrics.losses import TaskLoss
from fisherscope.metrics.model_analysis import ModelAnalysis
from fisherscope.naming import addresses
from fisherscope.results import Result
from fisherscope.structures.intervals import RESAMPLES, resamples

Outcome = Literal["higher", "lower", "unresolved", "described", "too_few"]
DAMAGE = "damage by "
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ModelComparison(Result):
    """Every model beside the first one, task by task.

    Attributes:
        reference: Name of the first model.
        table: One row per task, other model and quantity, see :meth:`to_frame`.
        tensors: One row per task, other model and tensor: ``log2_ratio`` of the traces of its
            block (other over reference) with its 95% interval.
        modules: The same for each module of each layer, its tensors pooled.
        similarity: One row per task, other model and metric, as :func:`fisherscope.similarity`
            gives it: how alike the two models' Fishers are, between ceiling and floor.
        unlike: Other models whose parameters are not the reference's (names or shapes): they
            are only in ``table``.
    """

    reference: str
    table: pd.DataFrame
    tensors: pd.DataFrame
    modules: pd.DataFrame
    similarity: pd.DataFrame
    unlike: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity.

        Returns:
            ``task``; ``model``, the other one; ``quantity``; ``reference`` and ``value``, of
            the two models; ``change`` with ``low`` and ``high``, its 95% bootstrap interval
            over examples; ``kind``, what the change is (``"difference"``, or ``"log2 ratio"``);
            ``unit`` of the values; ``paired``, whether both models saw the same examples;
            ``n``; ``outcome``: ``"higher"`` or ``"lower"`` where the interval excludes zero,
            ``"unresolved"``, ``"described"`` (no interval is to be had) or ``"too_few"``
            (fewer than two examples).
        """
        return self.table.copy()

    def findings(self) -> list[str]:
        """The comparison in sentences, resolved differences first.

        Returns:
            One sentence per task, model and quantity that has an interval.
        """
        rows: list[Row] = self.table.to_dict(orient="records")  # type: ignore[assignment]
        told = [row for row in rows if row["outcome"] in {"higher", "lower", "unresolved"}]
        told.sort(key=lambda row: row["outcome"] == "unresolved")
        return [_sentence(row, self.reference) for row in told]


def compare_models(analyses: Mapping[str, ModelAnalysis], *, seed: int = 0) -> ModelComparison:
    r"""Set every model beside the first one.

    Losses, traces and measured damage are compared by bootstrap over examples; where both
    models were given the same examples these are resampled together, so that what is hard
    about an example cancels. Traces are compared as :math:`\log_2` of their ratio.

    Args:
        analyses: Model name to what was found about it; the first is the reference.
        seed: Keys the bootstrap. Default: ``0``.

    Returns:
        The comparison.

    Raises:
        ParameterError: If there are fewer than two models, or they have no task in common.
    """
    if len(analyses) < 2:
        raise ParameterError(f"{len(analyses)} model: a comparison needs at least two")
    (reference, first), *others = analyses.items()
    rows, tensors, modules, likeness, unlike = [], [], [], [], []
    for name, other in others:
        tasks = [task for task in first.fishers if task in other.fishers]
        if not tasks:
            raise ParameterError(f"models {reference!r} and {name!r} have no task in common")
        for task in tasks:
            pair = _Pair(first, other, task, seed)
            place = {"task": task, "model": name}
            rows += [{**place, **row} for row in pair.rows()]
            if pair.alike:
                by_tensor, by_module = pair.ratios()
                tensors += [{**place, **row} for row in by_tensor]
                modules += [{**place, **row} for row in by_module]
                likeness += [{**place, **row} for row in pair.likeness()]
            elif name not in unlike:
                unlike.append(name)
    return ModelComparison(
        reference=reference,
        table=pd.DataFrame(rows),
        tensors=pd.DataFrame(tensors),
        modules=pd.DataFrame(modules),
        similarity=pd.DataFrame(likeness),
        unlike=tuple(unlike),
    )


class _Pair:
    # Two models on one task.

    def __init__(self, first: ModelAnalysis, other: ModelAnalysis, task: str, seed: int) -> None:
        self.task, self.seed = task, seed
        self.analyses = first, other
        self.losses = first.losses[task], other.losses[task]
        self.fishers = first.fishers[task], other.fishers[task]
        a, b = self.losses
        self.paired = a.ids == b.ids and bool(np.array_equal(a.tokens, b.tokens))
        shapes = [fisher.identity.parameters for fisher in self.fishers]
        self.alike = shapes[0] == shapes[1]
        # Equal seeds resample two equally long lists of examples alike.
        self.seeds = (seed, seed) if self.paired else (seed, seed + 1)

    def rows(self) -> Iterator[Row]:
        loss_a, loss_b = self.losses
        draws = [_resampled(loss, seed) for loss, seed in zip(self.losses, self.seeds, strict=True)]
        unit = "nats per token"
        yield self._row("loss", loss_a.value, loss_b.value, draws[1] - draws[0], unit)
        trace_a, trace_b = (fisher.trace() for fisher in self.fishers)
        logs = [
            _log2(fisher.bootstrap(np.sum, RESAMPLES, seed))
            for fisher, seed in zip(self.fishers, self.seeds, strict=True)
        ]
        unit = f"per {self.fishers[0].identity.unit}"
        yield self._row("trace", trace_a, trace_b, logs[1] - logs[0], unit, ratio=True)
        for key in ("top1_mass", "participation"):
            one, other = (self._task(analysis)[key] for analysis in self.analyses)
            yield self._described(key, one, other)
        yield from self._damage()

    def ratios(self) -> tuple[list[Row], list[Row]]:
        """Ratios of the traces of each tensor, and of each module of each layer."""
        names = list(self.fishers[0].identity.parameters)
        places = addresses(names)
        cells = list(dict.fromkeys(places[name] for name in names))
        member = np.array([[places[name] == cell for cell in cells] for name in names], dtype=float)
        traces = [np.array([fisher.traces()[name] for name in names]) for fisher in self.fishers]
        draws = [
            fisher.bootstrap(lambda found: found, RESAMPLES, seed)
            for fisher, seed in zip(self.fishers, self.seeds, strict=True)
        ]
        tensors = [
            {"tensor": name, "layer": places[name][0], "module": places[name][1], **row}
            for name, row in zip(names, _ratios(traces, draws), strict=True)
        ]
        pooled = _ratios([t @ member for t in traces], [d @ member for d in draws])
        modules = [
            {"layer": layer, "module": module, **row}
            for (layer, module), row in zip(cells, pooled, strict=True)
        ]
        return tensors, modules

    def _task(self, analysis: ModelAnalysis) -> Row:
        return next(row for row in analysis.results["tasks"] if row["name"] == self.task)

    def likeness(self) -> list[Row]:
        found = similarity(*self.fishers, seed=self.seed, across_models=True)
        return [{str(k): v for k, v in row.items()} for row in found.to_frame().to_dict("records")]

    def _damage(self) -> Iterator[Row]:
        first, other = (analysis.damages.get(self.task) for analysis in self.analyses)
        if first is None or other is None:
            return
        for by in first.table["displacement"]:
            a, b = (_damages(found, by) for found in (first, other))
            if a is None or b is None or np.isnan([*a.sums, *b.sums]).any():
                continue  # a step that only one model took, or damage that was not measured
            paired = a.ids == b.ids and self.paired
            seeds = self.seeds if paired else (self.seed, self.seed + 1)
            draws = [_resampled(loss, s) for loss, s in zip((a, b), seeds, strict=True)]
            yield self._row(
                f"{DAMAGE}{by}", a.value, b.value, draws[1] - draws[0], "nats per token"
            )

    def _row(
        self,
        quantity: str,
        reference: float,
        value: float,
        draws: np.ndarray,
        unit: str,
        ratio: bool = False,
    ) -> Row:
        with np.errstate(invalid="ignore", divide="ignore"):
            change = _log2(value) - _log2(reference) if ratio else value - reference
        low, high = np.quantile(draws, [0.025, 0.975])
        return {
            "quantity": quantity,
            "reference": reference,
            "value": value,
            "change": float(change),
            "low": float(low),
            "high": float(high),
            "kind": "log2 ratio" if ratio else "difference",
            "unit": unit,
            "paired": self.paired,
            "n": min(len(loss.ids) for loss in self.losses),
            "outcome": self._outcome(low, high),
        }

    def _described(self, quantity: str, reference: float, value: float) -> Row:
        row = self._row(quantity, reference, value, np.array([math.nan]), "")
        return {**row, "outcome": "described"}

    def _outcome(self, low: float, high: float) -> Outcome:
        if min(len(loss.ids) for loss in self.losses) < 2:
            return "too_few"
        if low > 0:
            return "higher"
        return "lower" if high < 0 else "unresolved"


def _resampled(loss: TaskLoss, seed: int) -> np.ndarray:
    return loss.means(resamples(len(loss.ids), seed))


def _damages(found: Damage, by: str) -> TaskLoss | None:
    rows = found.examples[found.examples["displacement"] == by]
    if rows.empty:
        return None
    return TaskLoss(
        ids=tuple(rows["example"]),
        sums=np.asarray(rows["measured"], dtype=float),
        tokens=np.asarray(rows["tokens"]),
    )


def _ratios(traces: list[np.ndarray], draws: list[np.ndarray]) -> list[Row]:
    with np.errstate(invalid="ignore"):  # a trace of zero in both has no ratio
        change = _log2(traces[1]) - _log2(traces[0])
        low, high = np.quantile(_log2(draws[1]) - _log2(draws[0]), [0.025, 0.975], axis=0)
    return [
        {"log2_ratio": float(c), "low": float(lo), "high": float(hi)}
        for c, lo, hi in zip(change, low, high, strict=True)
    ]


def _log2(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log2(values)


def _sentence(row: Row, reference: str) -> str:
    task, model, quantity = row["task"], row["model"], row["quantity"]
    resolved = row["outcome"] in {"higher", "lower"}
    end = "." if resolved else ": not resolved."
    if row["kind"] == "log2 ratio":
        low, high = 2 ** row["low"], 2 ** row["high"]
        size = f"{2 ** row['change']:.3g} times that of {reference} [{low:.3g}, {high:.3g}]"
        return f"On {task}, the Fisher trace of {model} is {size}{end}"
    size = f"{abs(row['change']):.3g} {row['unit']}"
    interval = f"[{row['low']:+.3g}, {row['high']:+.3g}]"
    above = row["change"] > 0
    if quantity == "loss":
        way = "above" if above else "below"
        return f"On {task}, the loss of {model} is {size} {way} that of {reference} {interval}{end}"
    by, way = quantity.removeprefix(DAMAGE), "more" if above else "less"
    where = f"in {model} than in {reference}"
    return f"A step for {by} costs {task} {size} {way} {where} {interval}{end}"
