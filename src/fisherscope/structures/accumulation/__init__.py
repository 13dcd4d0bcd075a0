"""How scores become the sums of each structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING

import torch
from torch import nn

from fisherscope import specs
from fisherscope.engine.coverage import Coverage
from fisherscope.errors import ParameterError
from fisherscope.structures.accumulation.base import Accumulator
from fisherscope.structures.accumulation.dense import DenseAccumulator
from fisherscope.structures.accumulation.eigen import EigenAccumulator
from fisherscope.structures.accumulation.factors import FactorAccumulator
from fisherscope.structures.accumulation.squares import SquaresAccumulator

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
) -> Accumulator:
    """Make the empty sums that a structure keeps.

    Each structure registers its own under the class of its spec.

    Args:
        spec: The structure.
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: The unit.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.

    Raises:
        ParameterError: If the structure has registered none, or an EKFAC comes without a basis.
    """
    del parameters, coverage, unit, basis
    raise ParameterError(f"structure={str(spec)!r} has no accumulator; register one")


@accumulator.register(specs.Diagonal)
@accumulator.register(specs.Grouped)
def _squares(spec, parameters, coverage, unit, basis=None) -> Accumulator:
    del basis
    return SquaresAccumulator(parameters, coverage, isinstance(spec, specs.Grouped), unit)


@accumulator.register(specs.Block)
@accumulator.register(specs.Dense)
def _matrices(spec, parameters, coverage, unit, basis=None) -> Accumulator:
    del unit, basis
    return DenseAccumulator(parameters, coverage, _blocks(spec, parameters))


@accumulator.register(specs.KFAC)
def _factors(spec, parameters, coverage, unit, basis=None) -> Accumulator:
    del basis
    return FactorAccumulator(parameters, coverage, unit, spec.sharing, spec.bias, spec.widest)


@accumulator.register(specs.EKFAC)
def _eigenvalues(spec, parameters, coverage, unit, basis=None) -> Accumulator:
    if basis is None:
        raise ParameterError(f"structure={str(spec)!r} needs the eigenbasis of a KFAC")
    return EigenAccumulator(parameters, coverage, unit, basis.layout, basis.eigenbasis())


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
    shapes: Mapping[str, nn.Parameter] = {
        n: torch.empty_like(p, device="meta")  # type: ignore[misc]
        for n, p in parameters.items()
    }
    if isinstance(spec, specs.EKFAC) and basis is None:
        factors = outline(specs.KFAC(**dataclasses.asdict(spec)), parameters, coverage, unit)
        return EigenAccumulator(shapes, coverage, unit, factors.layout, factors.sums)
    return accumulator(spec, shapes, coverage, unit, basis)


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
