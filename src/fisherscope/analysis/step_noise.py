"""How the damage by a step varies with the examples that the step is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fisherscope.analysis.damage import inner_products
from fisherscope.analysis.damage_index import DamageKind
from fisherscope.analysis.descent import Descent, gradient_of
from fisherscope.analysis.party import Party
from fisherscope.analysis.step_damage import StepDamage
from fisherscope.data import batches
from fisherscope.engine.displace import displaced
from fisherscope.engine.sweep import Labelling
from fisherscope.preparation import Prepared, settled
from fisherscope.products import Operator

Slopes = dict[str, Tensor]


def step_noise(
    hurt: Party,
    others: Mapping[str, Party],
    damages: Mapping[str, StepDamage],
    kind: DamageKind,
    *,
    measure: bool,
) -> dict[str, pd.DataFrame]:
    r"""First-order change of one task's damages per example of the tasks that take the steps.

    A damage is a function D of the step's mean gradient :math:`g = \sum_m g_m / \sum_m T_m`;
    example m moves it by :math:`\langle g_m - T_m g, \nabla_g D \rangle / \sum_m T_m`. The
    slopes are those of the index, :math:`\eta^2 F g` of the second order,
    :math:`-\eta g_A` more for the prediction, and :math:`-\eta \nabla L_A(\theta - \eta g)`
    for the measurement.

    Args:
        hurt: The task that is hurt.
        others: Label to a task that takes a step.
        damages: Label to what that step does.
        kind: Of the index.
        measure: Whether the measurement is among the damages.

    Returns:
        Label to :math:`\langle g_m - T_m g, \nabla_g D \rangle` for each example of that task,
        in the order of its batches, one column per quantity.
    """
    steps = {label: other.step for label, other in others.items() if other.step is not None}
    gradients = {
        name: torch.stack([step.gradient[name] for step in steps.values()])
        for name in hurt.prepared.parameters
    }
    curvature = Operator(hurt.exact, "fisher").matvec(gradients)
    found = {}
    for number, (label, step) in enumerate(steps.items()):
        product = {name: products[number] for name, products in curvature.items()}
        slopes = _slopes(hurt, step, damages[label], product, kind, measure)
        found[label] = _along(others[label].prepared, slopes)
    return found


def _along(stepping: Prepared, slopes: Mapping[str, Slopes]) -> pd.DataFrame:
    products = settled(stepping, lambda p: inner_products(p, Labelling(), slopes, False))
    along = pd.DataFrame(products[0].sum(1), columns=list(slopes))
    groups = batches(stepping.examples, stepping.config.batch_size)
    tokens = np.array([stepping.likelihood.tokens(e) for group in groups for e in group], float)
    return along.sub(tokens[:, None] * (along.sum() / tokens.sum()).to_numpy()[None], axis=1)


def _slopes(
    hurt: Party,
    step: Descent,
    damage: StepDamage,
    curvature: Slopes,
    kind: DamageKind,
    measure: bool,
) -> dict[str, Slopes]:
    assert hurt.step is not None
    prepared, rate = hurt.prepared, step.rate
    scale = rate**2 * damage.n_examples / damage.damage.n_tokens
    second = {name: scale * product for name, product in curvature.items()}
    slopes = {
        "index": _of_index(hurt, step, damage, kind),
        "second": second,
        "predicted": {n: s - rate * hurt.step.gradient[n] for n, s in second.items()},
    }
    if measure:
        with displaced(prepared.parameters, step.step):
            there = gradient_of(prepared)
        slopes["measured"] = {name: -rate * g for name, g in there.items()}
    return slopes


def _of_index(hurt: Party, step: Descent, damage: StepDamage, kind: DamageKind) -> Slopes:
    assert hurt.fisher is not None
    slopes, weight = {}, damage.index.weight
    for name, f in hurt.fisher.diagonal().items():
        g = step.gradient[name]
        f = f.sqrt() if kind == "sqrt" else f
        slope = f * (2 * g if kind == "quadratic" else torch.sign(g))
        slopes[name] = slope / weight if weight > 0 else torch.full_like(slope, math.nan)
    return slopes
