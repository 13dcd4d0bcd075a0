"""The coordinates with the largest Fisher information."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fisherscope.analysis.access import extents, flat, top
from fisherscope.arguments import check_choice, check_number, check_whole
from fisherscope.errors import ParameterError
from fisherscope.results import Result
from fisherscope.structures import Fisher

Scope = Literal["global", "tensor"]


@dataclass(frozen=True, eq=False)
class TopCoordinates(Result):
    """The largest entries of a Fisher diagonal.

    Attributes:
        scope: ``"global"`` (the largest of the whole model) or ``"tensor"`` (of each tensor).
        k: Number of coordinates in all.
        n: Number of coordinates to choose from: parameters, or groups of a grouped Fisher.
        mass: Share of the trace that the chosen coordinates hold. Coordinates and mass come
            from the same data, so this is optimistic; :func:`fisherscope.concentration`
            shows by how much.
        agreement: Jaccard index between the coordinates chosen from each half of the data,
            or ``None`` without halves. Near one, the choice is the task's; near zero, the
            sample's.
        frame: One row per coordinate, see :meth:`to_frame`.
    """

    scope: Scope
    k: int
    n: int
    mass: float
    agreement: float | None
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per coordinate, the largest first (within each tensor for that scope).

        Returns:
            Columns ``tensor``, ``index`` (in the flattened tensor; for a grouped Fisher the
            number of the group), ``position`` (index along each dimension), ``value`` (mean
            per unit) and ``share`` of the trace.
        """
        return self.frame.copy()

    @property
    def indices(self) -> dict[str, Tensor]:
        """Chosen indices into each flattened tensor, ascending."""
        groups = self.frame.groupby("tensor", sort=False)["index"]
        return {str(name): torch.from_numpy(np.sort(at.to_numpy())) for name, at in groups}


def top_coordinates(
    fisher: Fisher,
    *,
    k: int | None = None,
    fraction: float | None = None,
    scope: Scope = "global",
) -> TopCoordinates:
    """The coordinates with the largest Fisher information.

    Equal values are taken by lower index first, so the choice is deterministic and has
    exactly the size asked for.

    Args:
        fisher: Any Fisher; of a grouped one the largest groups are taken, of the block structures
            the diagonal is read (:func:`top_directions` has their eigenvectors).
        k: How many: in all, or of each tensor (of a smaller tensor all).
        fraction: Instead of ``k``, the fraction to take, between 0 and 1, rounded to the
            nearest number but at least one.
        scope: ``"global"`` or ``"tensor"``. Default: ``"global"``.

    Returns:
        The coordinates, the share of the trace that they hold, and whether the two halves
        agree on them.

    Raises:
        ParameterError: If not exactly one of ``k`` and ``fraction`` is given, if it is out
            of range, or if ``scope`` is unknown.
    """
    check_choice("scope", scope, get_args(Scope))
    if (k is None) == (fraction is None):
        raise ParameterError("give exactly one of k and fraction.")
    if fraction is not None:
        check_number("fraction", fraction, above=0, most=1)
    places = extents(fisher)
    values = flat(fisher)
    if k is not None:
        check_whole("k", k, low=1, most=len(values) if scope == "global" else None)

    chosen = _choose(values, places, k, fraction, scope)
    total = values.sum(dtype=np.float64)
    denominator = fisher.denominator()
    frames = []
    for name, place in places.items():
        index = np.flatnonzero(chosen[place])
        if not len(index):
            continue
        size = values[place][index].astype(np.float64)
        shape = fisher.identity.parameters[name]
        # A group has one number however many dimensions its tensor keeps.
        whole = place.stop - place.start == math.prod(shape)
        shape = shape if whole else (place.stop - place.start,)
        along = np.unravel_index(index, shape) if shape else ()
        frames.append(
            pd.DataFrame({
                "tensor": name,
                "index": index,
                "position": list(zip(*(axis.tolist() for axis in along), strict=True)) or [()],
                "value": size / denominator,
                "share": size / total if total else np.nan,
            }).sort_values("value", ascending=False, kind="stable")
        )
    frame = pd.concat(frames, ignore_index=True)
    if scope == "global":
        frame = frame.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    agreement = None
    if fisher.halves is not None:
        first, second = (_choose(flat(h), places, k, fraction, scope) for h in fisher.halves)
        agreement = float((first & second).sum() / (first | second).sum())
    return TopCoordinates(
        scope=scope,
        k=len(frame),
        n=len(values),
        mass=float(frame["share"].to_numpy().sum()),
        agreement=agreement,
        frame=frame,
    )


def _choose(
    values: np.ndarray,
    places: dict[str, slice],
    k: int | None,
    fraction: float | None,
    scope: Scope,
) -> np.ndarray:
    parts = [slice(0, len(values))] if scope == "global" else list(places.values())
    chosen = np.zeros(len(values), dtype=bool)
    for part in parts:
        n = part.stop - part.start
        wanted = max(1, round(fraction * n)) if fraction is not None else k or 0
        chosen[part] = top(values[part], min(wanted, n))
    return chosen
