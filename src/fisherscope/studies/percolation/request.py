"""What a percolation study is asked for, checked before any long work."""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
from torch import Tensor, nn

from fisherscope.analysis.access import own_weights, require_diagonal
from fisherscope.analysis.descent import mean_gradient
from fisherscope.arguments import check_number
from fisherscope.defaults import FisherConfig
from fisherscope.engine.quantised import StandIn
from fisherscope.engine.selection import select
from fisherscope.errors import IdentityError, ParameterError, TaskError
from fisherscope.preparation import Prepared, prepare
from fisherscope.structures import Fisher
from fisherscope.studies.percolation.orders import (
    ANY_TASK,
    FISHER_ORDERS,
    ORDERS,
    TASK_ORDERS,
    Order,
    Ordering,
    ordering,
    unit_scores,
)
from fisherscope.studies.percolation.removal import REMOVALS, Removal
from fisherscope.studies.percolation.units import LEVELS, Level, Units

TASK = "task"
# Examples of each task that are watched, unless the caller says otherwise.
WATCHED = 24
_LEAST_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class PercolationOptions:
    """How a percolation study is made; the defaults of :func:`percolation`, explained there.

    Attributes:
        levels: What is removed.
        orders: In which orders.
        removal: What is done to the weights.
        norm: Length of the noise, as a fraction of the length of all weights together.
        repetitions: Draws of random orders and of noise.
        points: Fractions per curve of an adaptive grid.
        fractions: The fractions themselves, 0 and 1 apart; ``None`` makes the grid adaptive.
        side: Fractions and lengths of noise of the phase diagram; 0 leaves it out.
        candidates: Units per order whose removal is measured one by one; 0 leaves it out.
        structure: Whether the neuron graph is looked at.
        seed: Keys everything random.
    """

    levels: tuple[Level, ...] = ("weight",)
    orders: tuple[Order, ...] = ORDERS
    removal: Removal = "zero"
    norm: float = 0.1
    repetitions: int = 3
    points: int = 11
    fractions: tuple[float, ...] | None = None
    side: int = 4
    candidates: int = 5
    structure: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("levels", LEVELS), ("orders", ORDERS)):
            chosen = getattr(self, name)
            unknown = [value for value in chosen if value not in known]
            if isinstance(chosen, str) or not chosen or unknown:
                raise ParameterError(
                    f"{name}={chosen!r}: give one or several of {', '.join(known)}"
                )
        if self.removal not in REMOVALS:
            raise ParameterError(
                f"removal={self.removal!r} is unknown; use one of {', '.join(get_args(Removal))}"
            )
        if not (isinstance(self.norm, int | float) and 0 < self.norm < math.inf):
            raise ParameterError(f"norm={self.norm!r} must be a number above 0, such as 0.1")
        for name, least in (
            ("repetitions", 1),
            ("points", _LEAST_POINTS),
            ("side", 0),
            ("candidates", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ParameterError(f"{name}={value!r} must be an integer of at least {least}")
        _check_fractions(self.fractions)
        if 0 < self.side < 2:
            raise ParameterError("side=1 makes no plane; use 0 to leave it out, or at least 2")


def _check_fractions(fractions: Any) -> None:
    if fractions is None:
        return
    if not isinstance(fractions, tuple) or not fractions:
        raise ParameterError(
            f"fractions={fractions!r}: give one or several numbers between 0 and 1, or None for "
            "an adaptive grid"
        )
    for i, fraction in enumerate(fractions):
        check_number(f"fractions[{i}]", fraction, low=0.0, most=1.0)


@dataclass(frozen=True, eq=False)
class Request:
    """A checked request.

    Attributes:
        model: The model.
        fishers: Task to Fisher.
        prepared: Task to checked examples, of every task that is watched.
        parameters: Name to parameter, of those that may be removed.
        gradients: Task to gradient, as given; those missing are taken on the watched examples.
        options: How the study is made.
    """

    model: nn.Module
    fishers: dict[str, Fisher]
    prepared: dict[str, Prepared]
    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Mapping[str, Tensor]]
    options: PercolationOptions

    @property
    def by(self) -> list[str]:
        """The tasks that orders are read from."""
        return list(self.fishers) or list(self.prepared)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Name to weights on the CPU."""
        return {name: p.detach().cpu() for name, p in self.parameters.items()}

    @cached_property
    def length(self) -> float:
        """Euclidean length of all weights together."""
        return math.sqrt(math.fsum(float(w.double().square().sum()) for w in self.weights.values()))

    @cached_property
    def diagonals(self) -> dict[str, dict[str, Tensor]]:
        """Task to Fisher diagonal."""
        return {task: fisher.diagonal() for task, fisher in self.fishers.items()}

    def gradient(self, task: str) -> Mapping[str, Tensor]:
        """The mean gradient of a task.

        Args:
            task: Its name.

        Returns:
            Parameter name to gradient.
        """
        if task not in self.gradients:
            p = self.prepared[task]
            self.gradients[task] = mean_gradient(
                self.model,
                p.examples,
                parameters=[glob.escape(name) for name in self.parameters],
                likelihood=p.config.likelihood,
                batch_size=p.config.batch_size,
            )
        return self.gradients[task]

    def scores(self, order: Order, by: str, units: Units) -> np.ndarray:
        """What units are sorted by.

        Args:
            order: The rule, not ``"random"``.
            by: The task.
            units: The units.

        Returns:
            float64 ``[units]``.
        """
        return unit_scores(
            order,
            units,
            self.weights,
            self.diagonals.get(by),
            self.gradient(by) if order == "gradient" else None,
        )

    def orderings(self, order: Order, by: str, units: Units) -> list[Ordering]:
        """An order of removal, with its repetitions.

        Args:
            order: The rule.
            by: The task, or :data:`ANY_TASK`.
            units: The units.

        Returns:
            One ordering, or several where it or what is done to the units is random.
        """
        options = self.options
        repeated = range(options.repetitions)
        if order == "random":
            return [
                ordering(order, units, self.parameters, repetition=r, seed=options.seed)
                for r in repeated
            ]
        one = ordering(order, units, self.parameters, self.scores(order, by, units), by=by)
        return [one] * (options.repetitions if options.removal == "noise" else 1)

    def sources(self, order: Order) -> list[str]:
        """The tasks that an order is read from.

        Args:
            order: The rule.

        Returns:
            Task names, or :data:`ANY_TASK` alone.
        """
        return self.by if order in TASK_ORDERS else [ANY_TASK]

    def identity(self) -> str:
        """Fingerprint of what a measurement depends on.

        Returns:
            32 hexadecimal digits.
        """
        fishers = {task: asdict(fisher.identity) for task, fisher in self.fishers.items()}
        watched = {
            task: [p.identity.model_fingerprint, p.identity.data_fingerprint, p.likelihood.name]
            for task, p in self.prepared.items()
        }
        given = {
            task: [float(g.double().sum()) for g in gradient.values()]
            for task, gradient in self.gradients.items()
        }
        whole = [fishers, watched, given, list(self.parameters), self.options.seed]
        text = json.dumps(whole, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def make_request(
    model: nn.Module,
    fisher: Fisher | Mapping[str, Fisher] | None,
    data: Any,
    *,
    gradients: Mapping[str, Mapping[str, Tensor]] | None,
    likelihood: str,
    batch_size: int | None,
    max_examples: int | None,
    options: PercolationOptions,
) -> Request:
    """Check what :func:`percolation` was given.

    Args:
        model: The model.
        fisher: One Fisher, or task to Fisher.
        data: The examples of one task, or task to examples.
        gradients: Task to gradient.
        likelihood: As in :func:`fisherscope.estimate`.
        batch_size: Examples per pass.
        max_examples: Examples of each task.
        options: How the study is made.

    Returns:
        The checked request.

    Raises:
        ParameterError: If something does not fit together; the message names it.
    """
    fishers, tasks = _paired(fisher, data)
    _check_orders(fishers, tasks, options)
    for task, one in fishers.items():
        require_diagonal(one, f"the percolation study by {task!r}")
        own_weights(one, model, f"the percolation study by {task!r}")
    names = _parameters(fishers)
    selection = None if names is None else [glob.escape(name) for name in names]
    parameters = select(model, selection)
    if integers := [name for name, p in parameters.items() if isinstance(p, StandIn)]:
        raise ParameterError(
            f"{integers[0]!r} holds integers (quantised weights), which can't be removed one by "
            "one; load the model unquantised, or estimate with parameters= that leaves it out"
        )
    config = FisherConfig(
        parameters=selection,
        likelihood=likelihood,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    prepared = {}
    for task, rows in tasks.items():
        prepared[task] = prepare(model, rows, config)
    return Request(model, fishers, prepared, parameters, dict(gradients or {}), options)


def _paired(
    fisher: Fisher | Mapping[str, Fisher] | None, data: Any
) -> tuple[dict[str, Fisher], dict[str, Any]]:
    if isinstance(fisher, Fisher):
        return {TASK: fisher}, {TASK: data}
    fishers = {name: fisher[name] for name in fisher} if fisher is not None else {}
    foreign = [n for n, one in fishers.items() if not isinstance(one, Fisher)]
    if foreign:
        raise ParameterError(
            f"fisher[{foreign[0]!r}] is a {type(fishers[foreign[0]]).__name__}; pass a Fisher from "
            "fs.estimate"
        )
    if not isinstance(data, Mapping) or not data:
        raise ParameterError(
            "data must be a mapping from task to examples where fisher is one from task to Fisher "
            "(or is left out)"
        )
    if missing := [name for name in fishers if name not in data]:
        raise TaskError(
            f"there is a Fisher of task {missing[0]!r}, but no data of it; tasks of data: "
            f"{', '.join(map(repr, data))}"
        )
    if any(isinstance(rows, Tensor) for rows in data.values()):
        raise ParameterError(
            "data holds tensors under its names, so it is one batch and not a mapping from task to "
            "examples; pass {'task': data}"
        )
    return fishers, {str(name): rows for name, rows in data.items()}


def _check_orders(
    fishers: Mapping[str, Fisher], tasks: Mapping[str, Any], options: PercolationOptions
) -> None:
    wanting = [order for order in options.orders if order in FISHER_ORDERS]
    if wanting and not fishers:
        rest = tuple(order for order in ORDERS if order not in FISHER_ORDERS)
        raise ParameterError(
            f"order {wanting[0]!r} needs a Fisher, and fisher= has none; estimate one, or use "
            f"orders={rest}"
        )
    if options.side and not fishers:
        raise ParameterError(
            "the phase diagram spreads noise over the top weights by Fisher, and fisher= has "
            "none; estimate one, or use side=0"
        )


def _parameters(fishers: Mapping[str, Fisher]) -> list[str] | None:
    first: tuple[str, list[str]] | None = None
    for task, one in fishers.items():
        names = list(one.identity.parameters)
        if first is None:
            first = task, names
        elif set(first[1]) != set(names):
            odd = sorted(set(first[1]) ^ set(names))
            raise IdentityError(
                f"the Fishers of {first[0]!r} and {task!r} have other parameters ({odd[0]!r} is in "
                "one only); estimate both with the same parameters="
            )
    return first[1] if first else None
