"""How one plain step on a task hurts another: index, prediction in nats, measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.damage_index import DamageIndex, DamageKind, damage_index
from fisherscope.analysis.descent import Descent, descent
from fisherscope.analysis.weighted import weighted_squares
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, Unit
from fisherscope.errors import ParameterError
from fisherscope.estimation import estimate
from fisherscope.naming import Selection, by_layer
from fisherscope.preparation import Prepared, prepare
from fisherscope.results import Result
from fisherscope.structures import Fisher

RESAMPLES = 1000
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
        kind, parameters, fisher_type, unit, likelihood, draws, seed, batch_size, max_examples
    )
    found = directed(
        model,
        data_a,
        data_b,
        config,
        kind=kind,
        fisher=fisher,
        learning_rate=learning_rate,
        measure=measure,
    )
    return found.damage


def step_config(
    kind: str,
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
    if kind not in get_args(DamageKind):
        raise ParameterError(f"kind={kind!r} is unknown; use one of {list(get_args(DamageKind))}.")
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


@dataclass(frozen=True, eq=False)
class Directed:
    """A step's damage with what it was computed from.

    Attributes:
        damage: The result.
        prepared: The checked request of the task that is hurt.
        fisher: Its Fisher.
        step: The step of the other task.
    """

    damage: StepDamage
    prepared: Prepared
    fisher: Fisher
    step: Descent


def directed(
    model: nn.Module,
    data_a: Any,
    data_b: Any,
    config: FisherConfig,
    *,
    kind: DamageKind,
    fisher: Fisher | None = None,
    learning_rate: float | None = None,
    measure: bool = False,
) -> Directed:
    """:func:`step_damage`, with what it was computed from.

    Args:
        model: The model.
        data_a: The task that is hurt.
        data_b: The task that takes the step.
        config: The settings that both have in common.
        kind: Of the index.
        fisher: A Fisher for the index. Default: ``None``, estimated.
        learning_rate: Of the step. Default: ``None``, by its curvature.
        measure: Take the step and measure. Default: ``False``.

    Returns:
        Result and ingredients.
    """
    step = descent(model, data_b, config, rate=learning_rate)
    prepared = prepare(model, data_a, config)
    data_a, given = prepared.examples, fisher is not None
    common = {
        "likelihood": config.likelihood,
        "draws": config.draws,
        "seed": config.seed,
        "batch_size": config.batch_size,
    }
    if fisher is None:
        fisher = estimate(
            model,
            data_a,
            parameters=config.parameters,
            fisher_type=config.fisher_type,
            unit=config.unit,
            progress=False,
            **common,
        )
    index = damage_index(fisher, step.gradient, kind=kind)
    found = damage(model, data_a, step.step, measure=measure, **common)
    examples = found.examples.drop(columns=["displacement", "scale"])
    added = np.full((len(examples), 2), math.nan)
    if not given:
        place = {example.id: row for row, example in enumerate(data_a)}
        squares = weighted_squares(prepared, _influences(fisher, step, kind))
        added = squares[[place[id] for id in examples["example"]]] / fisher.denominator()
        added = _linearised(added * len(added), index)
    examples["index_total"], examples["index_weight"] = added.T
    low, high = math.nan, math.nan
    if not given and len(examples) > 1 and index.outcome == "ok":
        counts = resamples(len(examples), config.seed)
        low, high = np.quantile(resampled_index(examples, counts), ENDS)
    result = StepDamage(
        index=index,
        index_low=float(low),
        index_high=float(high),
        damage=found,
        learning_rate=step.rate,
        step_norm=step.norm,
        n_examples=len(examples),
        examples=examples,
    )
    return Directed(result, prepared, fisher, step)


def resamples(n: int, seed: int | list[int]) -> np.ndarray:
    """How often each example is in each bootstrap sample.

    Args:
        n: Number of examples.
        seed: Seed.

    Returns:
        Counts [resamples, n].
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


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


def _influences(fisher: Fisher, step: Descent, kind: DamageKind) -> list[dict[str, Tensor]]:
    # Weights of the squared scores in numerator and denominator of the index; for the square
    # root, which is not linear in F, those with which the sums come out right at F itself.
    totals, weights = {}, {}
    for name, f in fisher.diagonal().items():
        g = step.gradient[name].double()
        roots = f.double().rsqrt().where(f > 0, torch.zeros(())) if kind == "sqrt" else None
        weights[name] = torch.ones_like(g) if roots is None else roots
        totals[name] = weights[name] * (g.square() if kind == "quadratic" else g.abs())
    return [totals, weights]


def _linearised(added: np.ndarray, index: DamageIndex) -> np.ndarray:
    # A sum of square roots moves half as much, relatively, as the sums under the roots.
    if index.kind != "sqrt":
        return added
    return (np.array([index.total, index.weight]) + added) / 2
