"""In which order units are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.analysis.access import order as descending
from fisherscope.studies.percolation.units import Units

Order = Literal["fisher", "obd", "magnitude", "gradient", "inverse", "random"]
ORDERS = get_args(Order)
FISHER_ORDERS = ("fisher", "obd", "inverse")
TASK_ORDERS = (*FISHER_ORDERS, "gradient")
ANY_TASK = ""


@dataclass(frozen=True, eq=False)
class Ordering:
    """One way of removing units one after another.

    Attributes:
        order: The rule.
        by: The task that it was read from, :data:`ANY_TASK` if it knows of none.
        repetition: Number of the random draw; 0 where nothing is drawn.
        places: int64 ``[count]``, when each unit goes: 0 is first.
        ranks: The same for every weight: parameter name to tensor that broadcasts to its shape.
    """

    order: Order
    by: str
    repetition: int
    places: np.ndarray
    ranks: dict[str, Tensor]

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(self.places)

    def first(self, removed: int) -> dict[str, Tensor]:
        """Where the weights of the first units are.

        Args:
            removed: How many units.

        Returns:
            Parameter name to boolean tensor that broadcasts to the parameter's shape, of the
            parameters that lose a weight.
        """
        found = {name: rank < removed for name, rank in self.ranks.items()}
        return {name: gone for name, gone in found.items() if bool(gone.any())}


def unit_scores(
    order: Order,
    units: Units,
    weights: Mapping[str, Tensor],
    diagonal: Mapping[str, Tensor] | None = None,
    gradient: Mapping[str, Tensor] | None = None,
) -> np.ndarray:
    r"""What units are sorted by; the largest goes first.

    ``"fisher"`` and ``"inverse"`` sum :math:`F` over the unit (the inverse order removes the
    smallest first), ``"obd"`` sums :math:`F\theta^2` (twice the expected cost of the removal,
    without cross terms), ``"magnitude"`` is the unit's Euclidean norm, and ``"gradient"`` is
    :math:`|\sum g\theta|`, the first-order cost (Molchanov et al. 2017).

    Args:
        order: One of :data:`ORDERS` but ``"random"``.
        units: The units.
        weights: Parameter name to weights, on the CPU.
        diagonal: Parameter name to Fisher diagonal. Default: ``None``, where it is not needed.
        gradient: Parameter name to gradient. Default: ``None``, where it is not needed.

    Returns:
        float64 ``[count]``, not negative.
    """
    if order == "magnitude":
        squares = {name: weights[name].double().square() for name in units.shapes}
        return units.sums(squares).sqrt().numpy()
    if order == "gradient":
        assert gradient is not None
        products = {n: weights[n].double() * gradient[n].double() for n in units.shapes}
        return units.sums(products).abs().numpy()
    assert diagonal is not None
    if order == "obd":
        costs = {n: diagonal[n].double() * weights[n].double().square() for n in units.shapes}
        return units.sums(costs).numpy()
    return units.sums(diagonal).numpy()


def ordering(
    order: Order,
    units: Units,
    parameters: Mapping[str, nn.Parameter],
    scores: np.ndarray | None = None,
    *,
    by: str = ANY_TASK,
    repetition: int = 0,
    seed: int = 0,
) -> Ordering:
    """Put units into an order; equal scores by the lower number first.

    Args:
        order: The rule.
        units: The units.
        parameters: Name to parameter; the ranks are put on its device.
        scores: From :func:`unit_scores`. Default: ``None``, for ``"random"``.
        by: The task. Default: none.
        repetition: Number of the draw for ``"random"``. Default: 0.
        seed: Keys the draws. Default: 0.

    Returns:
        The ordering.
    """
    if order == "random":
        sequence = np.random.default_rng((seed, repetition)).permutation(units.count)
    else:
        assert scores is not None
        sequence = np.argsort(scores, kind="stable") if order == "inverse" else descending(scores)
    places = np.empty(units.count, dtype=np.int64)
    places[sequence] = np.arange(units.count)
    spread = units.spread(torch.from_numpy(places))
    ranks = {name: rank.to(parameters[name].device) for name, rank in spread.items()}
    return Ordering(order, by, repetition, places, ranks)
