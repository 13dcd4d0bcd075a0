"""The inverse Fisher as a metric of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.defaults import FisherConfig
from fisherscope.errors import ParameterError, TaskError
from fisherscope.estimation import estimate
from fisherscope.structures import Fisher
from fisherscope.structures.vectors import check_damping

Fishers = Mapping[str, Fisher] | Fisher
PLAIN, NATURAL = "plain", "natural"


@dataclass(frozen=True, eq=False)
class Metric:
    r"""Multiplies gradients by :math:`(F + \lambda)^{-1/2}`.

    Attributes:
        damping: :math:`\lambda`: per token for diagonals, else per unit of F.
        scales: Tensor to the factors of its entries, fp32; empty unless F is diagonal.
        fisher: A Fisher of another structure, or ``None``.
        source: What F is, in words.
    """

    damping: float
    scales: dict[str, Tensor]
    fisher: Fisher | None
    source: str

    def whiten(self, rows: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Change whole rows in place.

        Args:
            rows: Tensor to rows [n, parameters].
            shapes: Tensor to its shape.
        """
        if self.fisher is None:
            for name, held in rows.items():
                held *= self.scales[name].to(held.device).reshape(-1)
            return
        for n in range(len(next(iter(rows.values())))):
            one = {name: held[n].reshape(shapes[name]).cpu() for name, held in rows.items()}
            for name, x in self.fisher.solve(one, damping=self.damping, power=0.5).items():
                rows[name][n] = x.reshape(-1).to(rows[name])


def inverse_fisher(
    model: nn.Module,
    tasks: Mapping[str, Sequence[Example]],
    fishers: Fishers | None,
    damping: float,
    config: FisherConfig,
    shapes: Mapping[str, tuple[int, ...]],
) -> Metric:
    r"""The metric of the mean Fisher of all tasks.

    Args:
        model: The model.
        tasks: Task to its examples.
        fishers: One Fisher for all; or one per task: the mean of diagonals, each per token, or
            of another structure their sum over all examples. ``None`` estimates diagonals with
            labels drawn from the model.
        damping: :math:`\lambda` as a fraction of the mean of F's diagonal.
        config: Likelihood, parameters, seed, batch size.
        shapes: Names and shapes of the parameters that are compared.

    Returns:
        The metric.

    Raises:
        ParameterError: If damping is negative, or F is zero, singular without damping, or of
            other parameters.
        TaskError: If a task has no Fisher, or a Fisher no task.
    """
    check_damping(damping)
    if fishers is None:
        fishers = {
            task: estimate(
                model,
                rows,
                fisher_type="mc",
                parameters=config.parameters,
                likelihood=config.likelihood,
                seed=config.seed,
                batch_size=config.batch_size,
                progress=False,
            )
            for task, rows in tasks.items()
        }
    if isinstance(fishers, Fisher):
        members, source = [fishers], f"one {fishers.structure} Fisher for all tasks"
    else:
        if odd := sorted(set(fishers) ^ set(tasks)):
            raise TaskError(
                f"fishers and tasks differ in {odd[0]!r}: give one Fisher per task, or a single "
                "one for all"
            )
        members = list(fishers.values())
        source = f"mean of {len(members)} {members[0].structure} Fishers"
    for member in members:
        if dict(member.identity.parameters) != dict(shapes):
            odd = sorted(set(member.identity.parameters.items()) ^ set(shapes.items()))
            raise ParameterError(
                f"a Fisher in fishers= and the gradients differ in {odd[0][0]!r}; pass the "
                "parameters= that the Fishers were estimated with"
            )
    if all(member.structure == "diagonal" for member in members):
        return _diagonal(members, damping, source)
    pooled = reduce(add, members)
    level = damping * pooled.trace() / pooled.n_parameters
    return Metric(_positive(level, damping), {}, pooled, source)


def _diagonal(members: Sequence[Fisher], damping: float, source: str) -> Metric:
    parts = [member.diagonal(per="token") for member in members]
    mean = {
        name: reduce(add, (part[name].double() for part in parts)) / len(parts) for name in parts[0]
    }
    total = math.fsum(float(f.sum()) for f in mean.values())
    level = _positive(damping * total / members[0].n_parameters, damping)
    if not damping and any(bool((f == 0).any()) for f in mean.values()):
        raise ParameterError("the Fisher has zeros on its diagonal: damping=0 divides by them")
    scales = {name: (f + level).rsqrt().float() for name, f in mean.items()}
    return Metric(level, scales, None, source)


def _positive(level: float, damping: float) -> float:
    if damping and not level > 0:
        raise ParameterError(
            "the Fisher is zero everywhere, so that it gives no metric; look at the data, or "
            "choose other parameters="
        )
    return level
