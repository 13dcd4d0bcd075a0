"""Which of two tasks a step on the other one hurts more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from fisherscope.analysis.damage_index import DamageKind
from fisherscope.analysis.importance import ENOUGH_EXAMPLES
from fisherscope.analysis.party import party
from fisherscope.analysis.step_damage import (
    ENDS,
    StepDamage,
    resampled_index,
    step_config,
    step_damages,
)
from fisherscope.analysis.step_noise import step_noise
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, Unit
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.naming import Selection
from fisherscope.results import Result
from fisherscope.structures.intervals import resamples

Outcome = Literal["ok", "not_resolved", "no_ratio", "too_few_examples"]
Quantity = Literal["index", "second", "predicted", "measured"]


@dataclass(frozen=True, eq=False)
class Asymmetry(Result):
    """What two tasks do to each other, and whether one is hurt more.

    Attributes:
        names: What the two tasks are called.
        more_fragile: The task with the larger index, or ``None`` if that is not resolved.
        outcome: That of the index, see :meth:`to_frame`.
        a: What a step on the second task does to the first.
        b: What a step on the first task does to the second.
        frame: One row per quantity, see :meth:`to_frame`.
    """

    names: tuple[str, str]
    more_fragile: str | None
    outcome: Outcome
    a: StepDamage
    b: StepDamage
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity.

        Returns:
            ``quantity``: ``"index"`` (of gradient and Fisher, no step size), ``"second"`` (the
            curvature term, nats per token), ``"predicted"`` (first and second order) and, if
            it was taken, ``"measured"``. ``a``: the damage to the first task by the second
            one's step, ``b``: that to the second, both with 95% intervals (``_low``,
            ``_high``); ``difference`` ``a - b``, ``ratio`` ``a / b`` and ``log_ratio``, its
            natural logarithm, with intervals of both but the ratio; ``more_fragile``: the name
            of the task that is hurt more; ``outcome``:

            - ``"ok"``;
            - ``"not_resolved"``: the interval of the difference holds zero, so nothing is said;
            - ``"no_ratio"``: the difference is resolved, but one of the two is no damage (zero
              or a gain), so that a ratio would have no meaning and is NaN;
            - ``"too_few_examples"``: fewer than 8 of one task, whose resamples are too few to
              tell; nothing is said.
        """
        return self.frame.copy()

    def row(self, quantity: Quantity) -> dict[str, Any]:
        """The row of one quantity.

        Args:
            quantity: As in :meth:`to_frame`.

        Returns:
            Column to value.

        Raises:
            ParameterError: If there is no such row.
        """
        rows = {row["quantity"]: row for row in self.frame.to_dict(orient="records")}
        if quantity not in rows:
            raise ParameterError(f"quantity={quantity!r} is not here; there are {list(rows)}.")
        return rows[quantity]


@needs_whole
def asymmetry(
    model: nn.Module,
    data_a: Any,
    data_b: Any,
    *,
    names: tuple[str, str] = ("a", "b"),
    kind: DamageKind = "quadratic",
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
) -> Asymmetry:
    r"""Compare what two tasks do to each other, :func:`fisherscope.step_damage` both ways.

    The ratio of the indices,

    .. math:: \frac{\sum_i F_{A,i}\, g_{B,i}^2 / \sum_i F_{A,i}}
                   {\sum_i F_{B,i}\, g_{A,i}^2 / \sum_i F_{B,i}},

    is above one where A is the more fragile. Intervals come from a bootstrap that resamples the
    examples of both tasks independently of each other, each in its two roles: as what is hurt,
    and as what the step is made from, there to first order in the gradient (the infinitesimal
    jackknife). With the steps held fixed two samples of *one* task would nearly always seem to
    differ, because each step has the noise of its own sample; so they are not. The lengths
    :math:`\eta` of the steps are.

    The noise of a gradient adds to its square, so the damage by a small sample is larger than
    that by a large one of the same task: compare samples of similar size.

    Args:
        model: The model; it comes back untouched.
        data_a: The first task, as in :func:`fisherscope.estimate`.
        data_b: The second.
        names: What to call them. Default: ``("a", "b")``.
        kind: Of the index, see :func:`fisherscope.damage_index`. Default: ``"quadratic"``.
        learning_rate: Of both steps. Default: ``None``, half of each task's own Cauchy step;
            the index does not depend on it.
        parameters: As in :func:`fisherscope.step_damage`. Default: ``None``, all.
        fisher_type: Labels of the index's Fishers. Default: ``"empirical"``.
        unit: Unit of the index's Fishers, ``"example"`` or ``"token"``. Default: ``"example"``.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Keys draws and bootstrap. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many of each task. Default: ``None``, all.
        measure: Also take both steps and measure. Default: ``False``.

    Returns:
        Both directions, their ratio, and which task is the more fragile.

    Raises:
        ParameterError: If the names are not two different texts; the rest as in
            :func:`fisherscope.step_damage`.
    """
    if len(names) != 2 or names[0] == names[1] or not all(isinstance(n, str) for n in names):
        raise ParameterError(f"names={names!r} must be two different texts.")
    config = step_config(
        *(kind, learning_rate, parameters, fisher_type, unit, likelihood),
        *(draws, seed, batch_size, max_examples),
    )
    data = dict(zip(names, (data_a, data_b), strict=True))
    pairs = asymmetries(
        model, data, config, kind=kind, learning_rate=learning_rate, measure=measure
    )
    return pairs[names]


def asymmetries(
    model: nn.Module,
    tasks: Mapping[str, Any],
    config: FisherConfig,
    *,
    kind: DamageKind = "quadratic",
    learning_rate: float | None = None,
    measure: bool = False,
) -> dict[tuple[str, str], Asymmetry]:
    """:func:`asymmetry` of every two of several tasks, each of them prepared once.

    Args:
        model: The model; it comes back untouched.
        tasks: Task name to data.
        config: The settings, as :func:`fisherscope.analysis.step_damage.step_config` has them.
        kind: Of the index. Default: ``"quadratic"``.
        learning_rate: Of all steps. Default: ``None``, half of each task's own Cauchy step.
        measure: Also take the steps and measure. Default: ``False``.

    Returns:
        Pair of names to what the two do to each other.
    """
    roles = {"hurt", "stepping"}
    parties = {
        name: party(model, data, config, roles=roles, learning_rate=learning_rate)
        for name, data in tasks.items()
    }
    damages, noises = {}, {}
    for name, hurt in parties.items():
        others = {label: other for label, other in parties.items() if label != name}
        found = step_damages(hurt, others, kind=kind, measure=measure)
        damages |= {(name, label): one for label, one in found.items()}
        noise = step_noise(hurt, others, found, kind, measure=measure)
        noises |= {(name, label): one for label, one in noise.items()}
    return {
        (a, b): _compared(
            (a, b), (damages[a, b], damages[b, a]), (noises[a, b], noises[b, a]), config.seed
        )
        for a, b in itertools.combinations(tasks, 2)
    }


def _compared(
    names: tuple[str, str],
    sides: tuple[StepDamage, StepDamage],
    noise: tuple[pd.DataFrame, pd.DataFrame],
    seed: int,
) -> Asymmetry:
    counts = [resamples(side.n_examples, [seed, n]) for n, side in enumerate(sides)]
    rows = [_row(quantity, sides, counts, noise, names) for quantity in noise[0].columns]
    return Asymmetry(
        names=names,
        more_fragile=rows[0]["more_fragile"],
        outcome=rows[0]["outcome"],
        a=sides[0],
        b=sides[1],
        frame=pd.DataFrame(rows),
    )


def _row(
    quantity: str,
    sides: tuple[StepDamage, StepDamage],
    counts: list[np.ndarray],
    noise: tuple[pd.DataFrame, pd.DataFrame],
    names: tuple[str, str],
) -> dict[str, Any]:
    row: dict[str, Any] = {"quantity": quantity}
    drawn = []
    for n, (label, found) in enumerate(zip("ab", sides, strict=True)):
        row[label] = float(_values(quantity, found, np.ones((1, found.n_examples)))[0])
        hurt = _values(quantity, found, counts[n])
        stepping = counts[1 - n]
        moved = (stepping @ noise[n][quantity]) / (stepping @ sides[1 - n].examples["tokens"])
        # What is never negative varies by a factor, so that no resample of it is.
        factor = quantity in {"index", "second"} and row[label] > 0
        drawn.append(hurt * np.exp(moved / row[label]) if factor else hurt + moved)
        row |= _interval(label, drawn[-1])
    value_a, value_b = row["a"], row["b"]
    row["difference"] = value_a - value_b
    row |= _interval("difference", drawn[0] - drawn[1])
    damages = value_a > 0 and value_b > 0
    row["ratio"] = value_a / value_b if damages else math.nan
    row["log_ratio"] = math.log(row["ratio"]) if damages else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.maximum(drawn[0], 0)) - np.log(np.maximum(drawn[1], 0))
    row |= _interval("log_ratio", logs if damages else np.array([math.nan]))
    few = min(found.n_examples for found in sides) < ENOUGH_EXAMPLES
    resolved = row["difference_low"] > 0 or row["difference_high"] < 0
    row["more_fragile"] = None if few or not resolved else names[int(value_a < value_b)]
    outcomes = {"too_few_examples": few, "not_resolved": not resolved, "no_ratio": not damages}
    row["outcome"] = next((name for name, holds in outcomes.items() if holds), "ok")
    return row


def _values(quantity: str, found: StepDamage, counts: np.ndarray) -> np.ndarray:
    examples = found.examples
    if quantity == "index":
        return resampled_index(examples, counts)
    if quantity == "predicted":
        values = examples["first"] + examples["second"]
    else:
        values = examples[quantity]
    return (counts @ values.to_numpy()) / (counts @ examples["tokens"].to_numpy(dtype=float))


def _interval(label: str, drawn: np.ndarray) -> dict[str, float]:
    # A resample without a value leaves the interval without an end.
    if np.isnan(drawn).any():
        return {f"{label}_low": math.nan, f"{label}_high": math.nan}
    # The ends of a logarithm may be infinite, between which there is nothing to interpolate.
    low, high = np.quantile(drawn, ENDS, method="nearest")
    return {f"{label}_low": float(low), f"{label}_high": float(high)}
