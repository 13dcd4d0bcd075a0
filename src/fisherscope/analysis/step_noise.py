"""How the damage by a step varies with the examples that the step is made from."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from fisherscope.analysis.damage import inner_products
from fisherscope.analysis.damage_index import DamageKind
from fisherscope.analysis.descent import mean_gradient
from fisherscope.analysis.step_damage import Directed
from fisherscope.data import batches
from fisherscope.engine.displace import displaced
from fisherscope.engine.sweep import Labelling
from fisherscope.preparation import settled
from fisherscope.products import operator

Slopes = dict[str, Tensor]


def step_noise(hurt: Directed, other: Directed, kind: DamageKind, *, measure: bool) -> pd.DataFrame:
    r"""First-order change of each damage per example of the task that takes the step.

    A damage is a function D of the step's mean gradient :math:`g = \sum_m g_m / \sum_m T_m`;
    example m moves it by :math:`\langle g_m - T_m g, \nabla_g D \rangle / \sum_m T_m`. The
    slopes are those of the index, :math:`\eta^2 F g` of the second order,
    :math:`-\eta g_A` more for the prediction, and :math:`-\eta \nabla L_A(\theta - \eta g)`
    for the measurement.

    Args:
        hurt: The direction looked at.
        other: The other one: its hurt task takes the step here.
        kind: Of the index.
        measure: Whether the measurement is among the damages.

    Returns:
        :math:`\langle g_m - T_m g, \nabla_g D \rangle` for each example, in the order of
        ``other.damage.examples``, one column per quantity.
    """
    stepping = other.prepared
    slopes = _slopes(hurt, other, kind, measure)
    products = settled(stepping, lambda p: inner_products(p, Labelling(), slopes, False))
    along = pd.DataFrame(products[0].sum(1), columns=list(slopes))
    groups = batches(stepping.examples, stepping.config.batch_size)
    along.index = pd.Index([example.id for group in groups for example in group])
    examples = other.damage.examples
    tokens = examples["tokens"].to_numpy(dtype=float)
    along = along.loc[list(examples["example"])].reset_index(drop=True)
    return along.sub(tokens[:, None] * (along.sum() / tokens.sum()).to_numpy()[None], axis=1)


def _slopes(hurt: Directed, other: Directed, kind: DamageKind, measure: bool) -> dict[str, Slopes]:
    prepared, config = hurt.prepared, hurt.prepared.config
    gradient, rate = hurt.step.gradient, hurt.step.rate
    options = {
        "parameters": config.parameters,
        "likelihood": config.likelihood,
        "batch_size": config.batch_size,
    }
    curvature = operator(
        prepared.model,
        prepared.examples,
        fisher_type="mc",
        draws=config.draws,
        seed=config.seed,
        **options,
    ).matvec(gradient)
    examples = hurt.damage.examples
    scale = rate**2 * len(examples) / float(examples["tokens"].to_numpy().sum())
    second = {name: scale * product for name, product in curvature.items()}
    slopes = {
        "index": _of_index(hurt, kind),
        "second": second,
        "predicted": {n: s - rate * other.step.gradient[n] for n, s in second.items()},
    }
    if measure:
        with displaced(prepared.parameters, hurt.step.step):
            there = mean_gradient(prepared.model, prepared.examples, **options)
        slopes["measured"] = {name: -rate * g for name, g in there.items()}
    return slopes


def _of_index(hurt: Directed, kind: DamageKind) -> Slopes:
    slopes, weight = {}, hurt.damage.index.weight
    for name, f in hurt.fisher.diagonal().items():
        g = hurt.step.gradient[name]
        f = f.sqrt() if kind == "sqrt" else f
        slope = f * (2 * g if kind == "quadratic" else torch.sign(g))
        slopes[name] = slope / weight if weight > 0 else torch.full_like(slope, math.nan)
    return slopes
