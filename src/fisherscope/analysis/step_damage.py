"""How one plain step on a task hurts another: index, prediction in nats, measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import Damage, damage_prepared
from fisherscope.analysis.damage_index import DamageIndex, DamageKind, damage_index
from fisherscope.analysis.descent import Descent
from fisherscope.analysis.party import Party, party
from fisherscope.analysis.weighted import weighted_squares
from fisherscope.arguments import check_choice, check_number
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, Unit
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.naming import Selection, by_layer
from fisherscope.results import Result
from fisherscope.structures import Fisher
from fisherscope.structures.intervals import resamples

ENDS = (0.025, 0.975)
_NATS = ("predicted", "predicted_low", "predicted_high")
_MEASURED = ("measured", "measured_low", "measured_high")


@dataclass(frozen=True, eq=False)
class StepDamage(Result):
    r"""What a step :math:`\delta = -\eta\, g_B` on one task does to another.

    Attributes:
        index: The index of gradient and Fisher, see :func:`fisherscope.damage_index`.
        index_low: Lower end of its 95% bootstrap interval over A's examples; NaN where the
            Fisher was given, whose examples are not at hand.
        index_high: Upper end.
        damage: Prediction and measurement in nats, see :func:`fisherscope.damage`.
        learning_rate: :math:`\eta`.
        step_norm: Euclidean length of the step.
        n_examples: Examples of A.
        examples: One row per example of A, in nats per example: ``example``, ``tokens``,
            ``first``, ``second``, ``measured``; and what it adds to the index (or, for
            ``"sqrt"``, to its linearisation): ``index_total`` and ``index_weight``.
    """

    index: DamageIndex
    index_low: float
    index_high: float
    damage: Damage
    learning_rate: float
    step_norm: float
    n_examples: int
    examples: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row for all, one per layer, one per tensor.

        Returns:
            ``level``, ``name``, ``n_parameters``, ``index`` and ``share`` as
            :meth:`fisherscope.DamageIndex.to_frame` has them; ``first`` and ``second`` order
            of the prediction in nats per token, which add up within a level, and their sum
            ``predicted``. The row for all has ``index_low`` and ``index_high``, and intervals
            of ``predicted`` and, where it was taken, of ``measured``; the others NaN there.
        """
        frame = self.index.to_frame().drop(columns=["total", "weight"])
        orders = self.damage.tensors.set_index("tensor")[["first", "second"]]
        layer = {name: label for name, (_, label) in by_layer(orders.index).items()}
        levels = {
            "all": orders.sum().to_frame("").T,
            "layer": orders.groupby(layer).sum(),
            "tensor": orders,
        }
        for column in ("first", "second"):
            frame[column] = [
                levels[level].at[name, column]
                for level, name in zip(frame["level"], frame["name"], strict=True)
            ]
        frame["predicted"] = frame["first"] + frame["second"]
        row = self.damage.table.iloc[0]
        top = {"index_low": self.index_low, "index_high": self.index_high}
        top |= {name: row[name] for name in (*_NATS[1:], *_MEASURED)}
        for name, value in top.items():
            frame[name] = np.where(frame["level"] == "all", value, math.nan)
        return frame


@needs_whole
@torch.inference_mode(False)
def step_damage(
    model: nn.Module,
    data_a: Any,
    data_b: Any,
    *,
    kind: DamageKind = "quadratic",
    fisher: Fisher | None = None,
    learning_rate: float | None = None,
    parameters: Selection = DEFAULTS.parameters,
    fisher_type: FisherType = DEFAULTS.fisher_type,
    unit: Unit = DEFAULTS.unit,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    measure: bool = False,
) -> StepDamage:
    r"""How a plain gradient step on task B hurts task A.

    Two answers side by side. The *index* (:func:`fisherscope.damage_index`) knows no step size
    and no sign: how much B's gradient moves what A needs. The *prediction*
    (:func:`fisherscope.damage`) is in nats per token for the step :math:`\delta = -\eta\, g_B`:
    first order :math:`g_A^\top\delta`, which may well be a gain, and second order
    :math:`\tfrac12 \delta^\top F_A \delta` in full, with labels drawn from the model. The step
    is held fixed: intervals are over A's examples.

    Args:
        model: The model; it comes back untouched, also where the step is measured.
        data_a: The task that is hurt, as in :func:`fisherscope.estimate`.
        data_b: The task that takes the step.
        kind: Of the index: ``"quadratic"``, ``"sqrt"`` or ``"l1"``. Default: ``"quadratic"``.
        fisher: A Fisher of A for the index. Default: ``None``, its diagonal is estimated on
            ``data_a``.
        learning_rate: :math:`\eta`. Default: ``None``, half of the Cauchy step of B
            (:func:`fisherscope.descent_step`).
        parameters: Those that move and count, as in :func:`fisherscope.estimate`. Default:
            ``None``, all.
        fisher_type: Labels of the index's Fisher. Default: ``"empirical"``.
        unit: Unit of the index's Fisher, ``"example"`` or ``"token"``. Default: ``"example"``.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Keys draws and bootstrap. Default: 0.
        batch_size: Examples per pass; for the interval of the index it is always 1. Default:
            ``None``, packs to 4096 tokens.
        max_examples: Use the first so many of each task. Default: ``None``, all.
        measure: Also take the step, evaluate A, and take it back. Default: ``False``.

    Returns:
        Index, prediction and measurement.
        ``ParameterError`` says which option makes no sense, or that ``fisher`` has other
        parameters than those that move; a gradient of B that vanishes raises ``DataError``.
    """
    config = step_config(
        *(kind, learning_rate, parameters, fisher_type, unit, likelihood),
        *(draws, seed, batch_size, max_examples),
    )
    hurt = party(model, data_a, config, roles={"hurt"}, fisher=fisher)
    other = party(model, data_b, config, roles={"stepping"}, learning_rate=learning_rate)
    return step_damages(hurt, {"b": other}, kind=kind, measure=measure)["b"]


def step_config(
    kind: str,
    learning_rate: float | None,
    parameters: Selection,
    fisher_type: FisherType,
    unit: Unit,
    likelihood: str,
    draws: int,
    seed: int,
    batch_size: int | None,
    max_examples: int | None,
) -> FisherConfig:
    """Check the options of a step's damage.

    Args:
        kind: Of the index.
        learning_rate: Of the step, or ``None``.
        parameters: As in :func:`step_damage`, like all that follow.
        fisher_type: Labels.
        unit: Unit.
        likelihood: Likelihood.
        draws: Draws.
        seed: Seed.
        batch_size: Batch size.
        max_examples: Examples.

    Returns:
        The settings of the Fisher.

    Raises:
        ParameterError: If ``kind`` or ``unit`` makes no sense.
    """
    check_choice("kind", kind, get_args(DamageKind))
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, above=0)
    if unit not in {"example", "token"}:
        raise ParameterError(
            f"unit={unit!r}: what each example adds to the index is known for 'example' and "
            "'token' only."
        )
    return FisherConfig(
        parameters=parameters,
        fisher_type=fisher_type,
        unit=unit,
        likelihood=likelihood,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
    )


@torch.inference_mode(False)
def step_damages(
    hurt: Party, others: Mapping[str, Party], *, kind: DamageKind, measure: bool
) -> dict[str, StepDamage]:
    """:func:`step_damage` of one task by the steps of several others, in the same passes.

    Args:
        hurt: The task that is hurt.
        others: Label to a task that takes a step.
        kind: Of the index.
        measure: Take the steps and measure.

    Returns:
        Label to result.
    """
    fisher, prepared = hurt.fisher, hurt.prepared
    assert fisher is not None
    steps = {label: other.step for label, other in others.items() if other.step is not None}
    moves = {label: step.step for label, step in steps.items()}
    found = damage_prepared(hurt.exact, moves, measure=measure)
    place = {example.id: row for row, example in enumerate(prepared.examples)}
    squares = None
    if not hurt.given:
        totals, weights = _influences(fisher, steps, kind)
        squares = weighted_squares(prepared, [weights, *totals.values()]) / fisher.denominator()
    results = {}
    for number, (label, step) in enumerate(steps.items()):
        index = damage_index(fisher, step.gradient, kind=kind)
        own = found.of(label)
        examples = own.examples.drop(columns=["displacement", "scale"]).reset_index(drop=True)
        added = np.full((len(examples), 2), math.nan)
        if squares is not None:
            rows = [place[id] for id in examples["example"]]
            added = _linearised(squares[rows][:, [number + 1, 0]] * len(rows), index)
        examples["index_total"], examples["index_weight"] = added.T
        low, high = math.nan, math.nan
        if squares is not None and len(examples) > 1 and index.outcome == "ok":
            counts = resamples(len(examples), prepared.config.seed)
            low, high = np.quantile(resampled_index(examples, counts), ENDS)
        results[label] = StepDamage(
            index=index,
            index_low=float(low),
            index_high=float(high),
            damage=own,
            learning_rate=step.rate,
            step_norm=step.norm,
            n_examples=len(examples),
            examples=examples,
        )
    return results


def resampled_index(examples: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """The index over resampled examples.

    Args:
        examples: As :class:`StepDamage` has them.
        counts: As :func:`resamples` gives them.

    Returns:
        One index per resample; NaN where its Fisher would be zero.
    """
    total, weight = (counts @ examples[f"index_{part}"].to_numpy() for part in ("total", "weight"))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, math.nan)


def _influences(
    fisher: Fisher, steps: Mapping[str, Descent], kind: DamageKind
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    # Weights of the squared scores in each index's numerator and in the denominator; for the
    # square root, which is not linear in F, those with which the sums come out right at F itself.
    weights = {}
    for name, f in fisher.diagonal().items():
        zero = torch.zeros((), dtype=f.dtype)
        weights[name] = f.rsqrt().where(f > 0, zero) if kind == "sqrt" else torch.ones_like(f)
    totals = {}
    for label, step in steps.items():
        sizes = {
            n: g.square() if kind == "quadratic" else g.abs() for n, g in step.gradient.items()
        }
        totals[label] = {name: weight * sizes[name] for name, weight in weights.items()}
    return totals, weights


def _linearised(added: np.ndarray, index: DamageIndex) -> np.ndarray:
    # A sum of square roots moves half as much, relatively, as the sums under the roots.
    if index.kind != "sqrt":
        return added
    return (np.array([index.total, index.weight]) + added) / 2
