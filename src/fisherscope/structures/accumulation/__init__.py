"""How scores become the sums of each structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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


def accumulator(
    spec: specs.Spec,
    parameters: Mapping[str, nn.Parameter],
    coverage: Coverage,
    unit: str,
    basis: KFACFisher | None = None,
) -> Accumulator:
    """The sums that a structure keeps.

    Args:
        spec: The structure.
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: The unit.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.

    Returns:
        Empty sums.

    Raises:
        ParameterError: If an EKFAC comes without a basis, or the structure has no sums.
    """
    if isinstance(spec, specs.Diagonal | specs.Grouped):
        grouped = isinstance(spec, specs.Grouped)
        return SquaresAccumulator(parameters, coverage, grouped, unit)
    if isinstance(spec, specs.Block | specs.Dense):
        return DenseAccumulator(parameters, coverage, _blocks(spec, parameters))
    if isinstance(spec, specs.KFAC):
        return FactorAccumulator(parameters, coverage, unit, spec.sharing, spec.bias, spec.widest)
    if isinstance(spec, specs.EKFAC) and basis is not None:
        return EigenAccumulator(parameters, coverage, unit, basis.layout, basis.eigenbasis())
    raise ParameterError(f"structure={str(spec)!r} needs the eigenbasis of a KFAC")


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
