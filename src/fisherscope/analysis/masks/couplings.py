"""Slices of several tensors that can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisherscope.analysis.heads import Head, heads
from fisherscope.errors import ParameterError

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Share:
    """Which unit each row (``dim`` 0) or column (``dim`` 1) of one tensor belongs to.

    Attributes:
        tensor: Name of the parameter.
        dim: Dimension along which it is shared out.
        owner: Number of the unit at each place along ``dim``; -1 where it is nobody's.
    """

    tensor: str
    dim: int
    owner: Tensor

    def add_to(self, sums: Tensor, values: Tensor) -> None:
        """Add each unit's part of some values.

        Args:
            sums: float64 ``[units]``, changed in place.
            values: A tensor in the parameter's shape.
        """
        others = [d for d in range(values.ndim) if d != self.dim]
        along = values.sum(others, dtype=torch.float64) if others else values.double()
        owned = self.owner >= 0
        sums.index_add_(0, self.owner[owned], along[owned])

    def mask(self, kept: Tensor, shape: Sequence[int]) -> Tensor:
        """Where the tensor stays.

        Args:
            kept: Boolean ``[units]``.
            shape: The parameter's shape.

        Returns:
            Boolean view of that shape.
        """
        along = kept[self.owner.clamp(min=0)] | (self.owner < 0)
        return along.reshape([-1 if d == self.dim else 1 for d in range(len(shape))]).expand(*shape)


@dataclass(frozen=True, eq=False)
class Coupling:
    """The units of one module.

    Attributes:
        module: Name of the module.
        units: How many there are.
        shares: The tensors that they are made of.
    """

    module: str
    units: int
    shares: tuple[Share, ...]

    @property
    def tensors(self) -> set[str]:
        """Names of the tensors."""
        return {share.tensor for share in self.shares}


def head_couplings(
    model: nn.Module, names: Iterable[str], guarded: Iterable[str] = ()
) -> list[Coupling]:
    """The removable attention heads.

    A unit is a key-value head with all query heads that read it: their rows of the query,
    key and value projections, biases included, and their columns of the output projection.

    Args:
        model: The model.
        names: The parameters that there are scores of.
        guarded: Parameters that stay whole. Default: none.

    Returns:
        One coupling per attention module that has a parameter among the names and none that is
        guarded.

    Raises:
        ParameterError: If the heads can't be told apart, or if some parameters of an
            attention module are not among the names.
    """  # noqa: DOC502 (raised by callees)
    wanted, kept = set(names), set(guarded)
    modules: dict[str, list[Head]] = {}
    for head in heads(model, [name for name, _ in model.named_parameters()]):
        modules.setdefault(head.attention, []).append(head)
    found = [_of_heads(attention, mine) for attention, mine in modules.items()]
    removable = [c for c in found if c.tensors & wanted and not c.tensors & kept]
    return whole(removable, wanted, "head")


def whole(couplings: list[Coupling], names: set[str], structure: str) -> list[Coupling]:
    """Make sure that no slice of a unit is missing.

    Args:
        couplings: What was found in the model.
        names: The parameters that there are scores of.
        structure: What the units are, for the message.

    Returns:
        The couplings.

    Raises:
        ParameterError: If some are missing.
    """
    if missing := sorted({name for c in couplings for name in c.tensors - names}):
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ParameterError(
            f"structure={structure!r} removes coupled slices of several tensors together, but the "
            f"Fisher lacks {', '.join(map(repr, missing[:_SHOWN]))}{more}. Estimate with "
            "parameters= that takes the whole modules."
        )
    return couplings


def _of_heads(attention: str, mine: list[Head]) -> Coupling:
    sizes: dict[tuple[str, int], int] = {}
    for part in (p for h in mine for p in h.parts):
        at = part.tensor, part.dim
        sizes[at] = max(sizes.get(at, 0), part.start + part.length)
    owners = {at: torch.full((size,), -1) for at, size in sizes.items()}
    # Query heads of one group are neighbours and share its key and value.
    group = next(h.queries for h in mine if h.role == "k")
    units = 0
    for head in mine:
        unit = head.head // group if head.role in "qo" else head.head
        units = max(units, unit + 1)
        for part in head.parts:
            owners[part.tensor, part.dim][part.start : part.start + part.length] = unit
    shares = (Share(tensor, dim, owner) for (tensor, dim), owner in owners.items())
    return Coupling(attention, units, tuple(shares))
