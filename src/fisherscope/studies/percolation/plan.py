"""What a percolation study will cost, known before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fisherscope.studies.percolation.concentration import counts
from fisherscope.studies.percolation.critical import RANKED
from fisherscope.studies.percolation.functional import given_grid
from fisherscope.studies.percolation.graph import NeuronGraph
from fisherscope.studies.percolation.request import Request
from fisherscope.studies.percolation.units import Units
from fisherscope.studies.percolation.watch import Watch

# More draws make the cells of the phase diagram little better, and are most of its cost.
PLANE_DRAWS = 2
# Levels whose units are removed one by one.
SINGLE = ("weight", "neuron", "head")


@dataclass(frozen=True)
class PercolationPlan:
    """What a study will cost.

    Attributes:
        evaluations: Largest number of states of the model that are looked at.
        seconds_each: Time of one evaluation of all tasks, measured.
        seconds: Predicted time of all evaluations; many look at a single task.
        watched: Task to number of examples that are watched.
        units: Level to number of units.
        bonds: Bonds of the neuron graph; 0 where there is none.
    """

    evaluations: int
    seconds_each: float
    seconds: float
    watched: dict[str, int]
    units: dict[str, int]
    bonds: int

    def __str__(self) -> str:
        units = ", ".join(f"{count:,} {level}s" for level, count in self.units.items())
        watched = ", ".join(f"{n} of {task}" for task, n in self.watched.items())
        return (
            f"{units}; examples watched: {watched}; one evaluation of all tasks takes "
            f"{self.seconds_each:.3g} s, at most {self.evaluations:,} evaluations about "
            f"{self.seconds:.0f} s"
        )


def make_plan(
    request: Request, watch: Watch, units: Mapping[str, Units], graph: NeuronGraph | None
) -> PercolationPlan:
    """Count the evaluations, and measure how long one takes.

    Args:
        request: The study.
        watch: The tasks.
        units: Level to units.
        graph: The neuron graph, or ``None``.

    Returns:
        The plan.
    """
    options = request.options
    each = {}
    for name in watch.tasks:
        start = time.perf_counter()
        watch.evaluate([name])
        each[name] = time.perf_counter() - start
    whole, own = 0, 0
    for one in units.values():
        # The first and the last point are shared.
        inner = _points(request, one) - 2
        for order in options.orders:
            repeated = order == "random" or options.removal == "noise"
            times = options.repetitions if repeated else 1
            whole += len(request.sources(order)) * times * max(inner, 0)
        whole += 1
        own += options.candidates * len(RANKED) * (one.level in SINGLE)
    if options.side and "weight" in units:
        several = len(counts(units["weight"].count, options.side))
        runs = options.side * min(PLANE_DRAWS, options.repetitions)
        own += runs * several
        # Noise on all weights at once is the same in every order, so it is known by then.
        whole += runs * (several - (set(request.by) == set(watch.tasks)))
    everything = sum(each.values())
    return PercolationPlan(
        evaluations=whole + own * len(request.by),
        seconds_each=everything,
        seconds=whole * everything + own * sum(each[name] for name in request.by),
        watched={name: len(task.ids) for name, task in watch.tasks.items()},
        units={level: one.count for level, one in units.items()},
        bonds=0 if graph is None else graph.bonds,
    )


def _points(request: Request, units: Units) -> int:
    options = request.options
    if options.fractions is not None:
        return len(given_grid(options.fractions, units.count))
    return min(options.points, units.count + 1)
