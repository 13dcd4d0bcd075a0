"""What is removed as one: single weights, hidden units, attention heads, layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fisherscope.analysis.masks.couplings import Coupling, head_couplings
from fisherscope.analysis.masks.neurons import neuron_couplings
from fisherscope.errors import ParameterError
from fisherscope.naming import by_layer

Level = Literal["weight", "neuron", "head", "layer"]
LEVELS = get_args(Level)
NOBODY = -1


@dataclass(frozen=True, eq=False)
class Units:
    """Disjoint sets of weights, numbered from zero.

    Attributes:
        level: What they are.
        names: One name per unit; empty for single weights, see :meth:`name`.
        owners: Parameter name to the number of each weight's unit, :data:`NOBODY` where a weight
            belongs to none; broadcasts to the parameter's shape.
        shapes: Parameter name to shape, of every parameter that has a unit.
        count: How many units there are.
    """

    level: Level
    names: tuple[str, ...]
    owners: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    count: int

    def name(self, unit: int) -> str:
        """What a unit is called.

        Args:
            unit: Its number.

        Returns:
            Text such as ``model.layers.0.mlp[17]``; for a weight its tensor and coordinates.

        Raises:
            IndexError: If there is no such unit.
        """
        if self.names:
            return self.names[unit]
        for tensor, shape in self.shapes.items():
            size = math.prod(shape)
            if unit < size:
                at = torch.unravel_index(torch.tensor(unit), shape)
                return f"{tensor}[{', '.join(str(int(i)) for i in at)}]"
            unit -= size
        raise IndexError(unit)

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """Add up values of single weights by unit.

        Args:
            values: Parameter name to tensor of the parameter's shape.

        Returns:
            float64 ``[count]``.
        """
        if self.level == "weight":
            return torch.cat([values[name].double().reshape(-1) for name in self.shapes])
        total = torch.zeros(self.count, dtype=torch.float64)
        for name, owner in self.owners.items():
            # Summed over the dimensions along which the owner does not change.
            along = [d for d, size in enumerate(owner.shape) if size == 1]
            part = values[name].double()
            part = (part.sum(along) if along else part).reshape(-1)
            owned = owner.reshape(-1) != NOBODY
            total.index_add_(0, owner.reshape(-1)[owned], part[owned])
        return total

    def spread(self, values: Tensor) -> dict[str, Tensor]:
        """Give every weight the value of its unit.

        Args:
            values: Integers ``[count]``.

        Returns:
            Parameter name to tensor that broadcasts to the parameter's shape; what belongs to no
            unit gets the largest integer.
        """
        if self.level == "weight":
            parts = values.split([math.prod(shape) for shape in self.shapes.values()])
            found = zip(self.shapes.items(), parts, strict=True)
            return {name: part.reshape(shape) for (name, shape), part in found}
        never = torch.full((1,), torch.iinfo(values.dtype).max, dtype=values.dtype)
        table = torch.cat([values, never])  # index -1 is nobody's
        return {name: table[owner] for name, owner in self.owners.items()}

    def only(self, unit: int) -> dict[str, Tensor]:
        """The weights of one unit.

        Args:
            unit: Its number.

        Returns:
            Parameter name to boolean tensor that broadcasts to the parameter's shape, of the
            parameters that the unit has a weight in.
        """
        if self.level == "weight":
            for name, shape in self.shapes.items():
                size = math.prod(shape)
                if unit < size:
                    mask = torch.zeros(size, dtype=torch.bool)
                    mask[unit] = True
                    return {name: mask.reshape(shape)}
                unit -= size
        masks = {name: owner == unit for name, owner in self.owners.items()}
        return {name: mask for name, mask in masks.items() if bool(mask.any())}


def find_units(model: nn.Module, parameters: Mapping[str, nn.Parameter], level: Level) -> Units:
    """The units of a model.

    Args:
        model: The model.
        parameters: First name to parameter, of those that may be removed.
        level: ``"weight"``; ``"neuron"`` (hidden units of MLPs, with their rows of the projections
            up and their columns of the projection down); ``"head"`` (key-value heads with the
            query heads that read them); ``"layer"`` (all weights of a layer; what lies outside
            the layers stays).

    Returns:
        The units.

    Raises:
        ParameterError: If the level is unknown, or the model has no such units among the
            parameters.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if level == "weight":
        return Units("weight", (), {}, shapes, sum(map(math.prod, shapes.values())))
    if level == "layer":
        return _layers(shapes)
    if level not in LEVELS:
        raise ParameterError(f"level={level!r} is unknown; use one of {', '.join(LEVELS)}")
    find = neuron_couplings if level == "neuron" else head_couplings
    try:
        couplings = find(model, tuple(shapes))
    except ParameterError as error:
        raise ParameterError(f"level={level!r}: {error}") from error
    return _coupled(level, couplings, shapes)


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> Units:
    places = {name: label for name, (layer, label) in by_layer(shapes).items() if layer is not None}
    labels = list(dict.fromkeys(places.values()))
    if not labels:
        raise ParameterError(
            "level='layer': no name of a parameter has a layer's number "
            f"({', '.join(list(shapes)[:3])}, …); use level='weight'"
        )
    numbers = {label: i for i, label in enumerate(labels)}
    owners = {
        name: torch.full((1,) * len(shapes[name]), numbers[label]) for name, label in places.items()
    }
    return Units(
        "layer",
        tuple(f"layer {label}" for label in labels),
        owners,
        {name: shapes[name] for name in owners},
        len(labels),
    )


def _coupled(
    level: Level, couplings: list[Coupling], shapes: Mapping[str, tuple[int, ...]]
) -> Units:
    names: list[str] = []
    owners: dict[str, Tensor] = {}
    for coupling in couplings:
        for share in coupling.shares:
            shape = shapes[share.tensor]
            owner = torch.where(share.owner < 0, NOBODY, share.owner + len(names))
            sides = [-1 if d == share.dim else 1 for d in range(len(shape))]
            owners[share.tensor] = owner.reshape(sides)
        names += [f"{coupling.module}[{unit}]" for unit in range(coupling.units)]
    return Units(level, tuple(names), owners, {name: shapes[name] for name in owners}, len(names))
