"""Recycled squared gradients beside the Fisher that they are taken for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from fisherscope.analysis.access import extents, flat, require_diagonal
from fisherscope.analysis.agreement import Metric, Vector, agreement, chance
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.recycling import SquaredGradients
from fisherscope.results import Result
from fisherscope.structures import Fisher
from fisherscope.structures.fisher import Per

Outcome = Literal["ok", "no_halves", "zero"]
ALL = "all tensors"
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class RecycledComparison(Result):
    """How far recycled squared gradients stand in for a Fisher.

    Attributes:
        what: In words what was compared with the Fisher.
        n: Number of parameters compared.
        n_examples: Number of examples behind the Fisher.
        per: What the traces of the Fisher are per.
        outcome: ``"ok"``; ``"no_halves"`` (no ceiling: estimate with ``halves=True``);
            ``"zero"`` (one of the two is zero everywhere, and nothing can be said).
        frame: One row per tensor and one for all of them, see :meth:`to_frame`.
    """

    what: str
    n: int
    n_examples: int
    per: Per
    outcome: Outcome
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """All tensors together first, then one row per tensor.

        Returns:
            ``tensor``; ``n_parameters``; each metric of :func:`fisherscope.similarity` under
            its name; under ``…_ceiling`` what two halves of the Fisher's examples reach with
            each other (NaN without halves); under ``…_floor`` its mean if the numbers were
            shuffled within each tensor; ``trace_ratio``, the trace of the squares over that
            of the Fisher; ``implied_batch``, one over it. NaN where a value is 0/0, such as a
            correlation of constants.
        """
        return self.frame.copy()

    def value(self, metric: Metric, tensor: str = ALL) -> float:
        """One number of the table.

        Args:
            metric: Name of a metric.
            tensor: Name of a tensor. Default: all tensors together.

        Returns:
            The value.

        Raises:
            ParameterError: If there is no such metric or tensor.
        """
        if metric not in get_args(Metric):
            raise ParameterError(f"metric={metric!r} is unknown; use {list(get_args(Metric))}.")
        values = dict(zip(self.frame["tensor"], self.frame[metric], strict=True))
        if tensor not in values:
            raise ParameterError(f"{tensor!r} was not compared; use {_some(list(values))}.")
        return float(values[tensor])


def compare_recycled(
    recycled: SquaredGradients,
    fisher: Fisher,
    *,
    per: Per = "unit",
    k_fraction: float = 0.01,
) -> RecycledComparison:
    r"""Put the squared gradients of an optimizer beside a real Fisher.

    For a batch of B independent examples with scores :math:`s_n`, mean :math:`m`, the mean
    gradient has the expected square :math:`\frac1B F + (1 - \frac1B) m^2`. Where training has
    come to rest (:math:`m = 0`) the squares are thus one B-th of the Fisher and agree with it
    but for noise; then ``implied_batch`` is B. It is smaller where the squared mean gradient
    adds to the squares, larger where clipping takes from them. A language model's loss is a
    mean over the tokens of a batch: compare with ``per="token"``, and the implied batch counts
    tokens.

    How alike they can be at best shows the *ceiling*: two halves of the Fisher's own examples.
    The *floor* is what the tensors' scales alone give.

    Args:
        recycled: Of :func:`fisherscope.from_optimizer`; tensors that the Fisher does not have
            are left aside.
        fisher: A diagonal Fisher, estimated at the weights at which the optimizer stands, on
            the data that it was trained on.
        per: What the Fisher's trace is per, for the ratio. Default: ``"unit"``.
        k_fraction: Size of the top sets of the Jaccard index as a fraction of all coordinates.
            Default: ``0.01``.

    Returns:
        The comparison, for all tensors together and for each.

    Raises:
        ParameterError: If ``k_fraction`` is out of range. A grouped Fisher, or one with a tensor
            that the squares lack, raises it too; a tensor of another shape
            :class:`IdentityError`.

    Source:
        Li, Dangel, Tam, Raffel: Fishers for free? (ICML 2025).
    """
    if not 0 < k_fraction <= 1:
        raise ParameterError(f"k_fraction={k_fraction!r} must be above 0 and at most 1.")
    require_diagonal(fisher, "compare_recycled")
    _check(recycled, fisher)
    squares, places = recycled.diagonal(), extents(fisher)
    mine = np.concatenate([squares[name].reshape(-1).numpy() for name in places])
    real = flat(fisher)
    halves = [flat(half) for half in fisher.halves or ()]
    denominator = fisher.denominator(per)
    rows = []
    for name, place in {ALL: slice(0, len(real)), **places}.items():
        parts = list(places.values()) if name == ALL else [slice(0, place.stop - place.start)]
        a, b = Vector(mine[place], k_fraction), Vector(real[place], k_fraction)
        ceiling = [Vector(half[place], k_fraction) for half in halves]
        rows.append({
            "tensor": name,
            "n_parameters": len(a.values),
            **_metrics(a, b, ceiling, parts),
            "trace_ratio": _over(a.total * denominator, b.total),
            "implied_batch": _over(b.total, a.total * denominator),
        })
    zero = not (mine.any() and real.any())
    return RecycledComparison(
        what=recycled.what,
        n=len(real),
        n_examples=fisher.n_examples,
        per=per,
        outcome="zero" if zero else "ok" if halves else "no_halves",
        frame=pd.DataFrame(rows),
    )


def _metrics(a: Vector, b: Vector, halves: list[Vector], parts: list[slice]) -> dict[str, float]:
    value, floor = agreement(a, b), chance(a, b, parts)
    ceiling = agreement(*halves) if halves else dict.fromkeys(get_args(Metric), math.nan)
    return {
        column: number
        for metric in get_args(Metric)
        for column, number in (
            (metric, value[metric]),
            (f"{metric}_ceiling", ceiling[metric]),
            (f"{metric}_floor", floor[metric]),
        )
    }


def _check(recycled: SquaredGradients, fisher: Fisher) -> None:
    shapes = {name: tuple(v.shape) for name, v in recycled.accumulated.items()}
    lacking = [
        f"{name!r} ({recycled.missing.get(name, 'not asked for')})"
        for name in fisher.identity.parameters
        if name not in shapes
    ]
    if lacking:
        raise ParameterError(
            f"the {recycled.optimizer} has no squared gradients of {_some(lacking)}: estimate the "
            "Fisher with parameters=list(recycled.accumulated)"
        )
    for name, shape in fisher.identity.parameters.items():
        if shapes[name] != shape:
            raise IdentityError(
                f"{name!r} has shape {shapes[name]} in the {recycled.optimizer} and {shape} in the "
                "Fisher: take both from the same model"
            )


def _some(parts: Sequence[str]) -> str:
    shown = ", ".join(parts[:_SHOWN])
    return shown + (f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
