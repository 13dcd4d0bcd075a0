"""How scores become the sums of each structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING

from torch import nn

from fisherscope import specs
from fisherscope.engine.coverage import Coverage
from fisherscope.errors import ParameterError
from fisherscope.structures.accumulation.base import Accumulator
from fisherscope.structures.accumulation.dense import DenseAccumulator
from fisherscope.structures.accumulation.eigen import EigenAccumulator
from fisherscope.structures.accumulation.factors import FactorAccumulator
from fisherscope.structures.accumulation.squares import SquaresAccumulator
from fisherscope.structures.rooms import Room, memory, nowhere

if TYPE_CHECKING:
    from fisherscope.structures.kfac import KFACFisher

__all__ = ["Accumulator", "accumulator", "outline"]


@singledispatch
def accumulator(
    spec: specs.Spec,
    parameters: Mapping[str, nn.Parameter],
    coverage: Coverage,
    unit: str,
    basis: KFACFisher | None = None,
    room: Room = memory,
) -> Accumulator:
    """Make the empty sums that a structure keeps.

    Each structure registers its own under the class of its spec.

    Args:
        spec: The structure.
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: The unit.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.
        room: Makes the sums. Default: in memory.

    Raises:
        ParameterError: If the structure has registered none, or an EKFAC comes without a basis.
    """
    del parameters, coverage, unit, basis, room
    raise ParameterError(f"structure={str(spec)!r} has no accumulator; register one")


@accumulator.register(specs.Diagonal)
@accumulator.register(specs.Grouped)
def _squares(spec, parameters, coverage, unit, basis=None, room=memory) -> Accumulator:
    del basis
    return SquaresAccumulator(parameters, coverage, isinstance(spec, specs.Grouped), unit, room)


@accumulator.register(specs.Block)
@accumulator.register(specs.Dense)
def _matrices(spec, parameters, coverage, unit, basis=None, room=memory) -> Accumulator:
    del unit, basis
    return DenseAccumulator(parameters, coverage, _blocks(spec, parameters), room)


@accumulator.register(specs.KFAC)
def _factors(spec, parameters, coverage, unit, basis=None, room=memory) -> Accumulator:
    del basis
    options = spec.sharing, spec.bias, spec.widest
    return FactorAccumulator(parameters, coverage, unit, *options, room)


@accumulator.register(specs.EKFAC)
def _eigenvalues(spec, parameters, coverage, unit, basis=None, room=memory) -> Accumulator:
    if basis is None:
        raise ParameterError(f"structure={str(spec)!r} needs the eigenbasis of a KFAC")
    layout, vectors = basis.layout, basis.eigenbasis()
    return EigenAccumulator(parameters, coverage, unit, layout, vectors, room)


def outline(
    spec: specs.Spec,
    parameters: Mapping[str, nn.Parameter],
    coverage: Coverage,
    unit: str,
    basis: KFACFisher | None = None,
) -> Accumulator:
    """The shapes of the sums that a structure keeps, without their memory.

    Args:
        spec: The structure.
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: The unit.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``, the one that the same
            parameters would have.

    Returns:
        Sums on the ``meta`` device.
    """
    if isinstance(spec, specs.EKFAC) and basis is None:
        factors = outline(specs.KFAC(**dataclasses.asdict(spec)), parameters, coverage, unit)
        return EigenAccumulator(parameters, coverage, unit, factors.layout, factors.sums, nowhere)
    return accumulator(spec, parameters, coverage, unit, basis, nowhere)


def _blocks(
    spec: specs.Block | specs.Dense, parameters: Mapping[str, nn.Parameter]
) -> list[tuple[str, ...]]:
    if isinstance(spec, specs.Dense):
        return [tuple(parameters)]
    if spec.per == "tensor":
        return [(name,) for name in parameters]
    layers: dict[str, list[str]] = {}
    for name in parameters:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(names) for names in layers.values()]
