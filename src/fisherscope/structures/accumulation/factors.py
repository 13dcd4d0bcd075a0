"""Kronecker factors: second moments of layer inputs and of output gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine.contraction import add_gram, at_least_fp32, mirror
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.scores import Score, VectorScore
from fisherscope.engine.sharing import identical
from fisherscope.structures.accumulation.base import Accumulator
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.rooms import Room, memory


@dataclass(frozen=True)
class KroneckerPlan:
    """Which parameters get Kronecker factors, and which keep their exact diagonal.

    Attributes:
        joint: Weight to the bias in its block, or to ``None``.
        alone: Biases with a block of their own: the moment of the output gradients.
        rest: Everything else.
    """

    joint: dict[str, str | None]
    alone: tuple[str, ...]
    rest: tuple[str, ...]


def plan_factors(
    parameters: Mapping[str, nn.Parameter], coverage: Coverage, bias: str
) -> KroneckerPlan:
    """Sort the requested parameters.

    A weight has Kronecker factors if all of its uses are matrix products: not with a tied
    embedding, whose uses do not share one factorisation.

    Args:
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        bias: ``"joint"`` or ``"separate"``.

    Returns:
        Each requested parameter in exactly one place.
    """
    weights = {name: coverage.factored[name] for name in parameters if name in coverage.factored}
    partners = [partner for partner in weights.values() if partner is not None]
    # A bias that two weights share has no block with either.
    joint = {
        name: p if bias == "joint" and p is not None and partners.count(p) == 1 else None
        for name, p in weights.items()
    }
    taken = {*joint, *joint.values()}
    alone = tuple(dict.fromkeys(p for p in partners if p not in taken))
    rest = tuple(name for name in parameters if name not in taken and name not in alone)
    return KroneckerPlan(joint, alone, rest)


def pieces(width: int, widest: int | None) -> list[slice]:
    """Cut a dimension into near-equal contiguous pieces (Grosse et al. 2023, App. A).

    Args:
        width: Its size.
        widest: Most entries of a piece; ``None`` for one piece.

    Returns:
        Slices in order.
    """
    count = 1 if widest is None else -(-width // widest)
    edges = [width * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


@dataclass
class _Means:
    """Inputs of a layer summed over the positions of each example, for ``reduce``."""

    total: Tensor  # [batch, in]
    count: Tensor  # [batch]
    counted: bool = False  # whether the input factor has them already

    def average(self, rows: slice) -> Tensor:
        """Mean input of some examples [examples, in]; a batch of one may be any of them."""
        chosen = slice(None) if len(self.count) == 1 else rows
        return self.total[chosen] / self.count[chosen].clamp_min(1).unsqueeze(1)


class FactorAccumulator(Accumulator):
    """Sums of ``g gᵀ`` and ``a aᵀ`` for KFAC; exact squares where there are no factors.

    With ``sharing="expand"`` every position is a row; with ``"reduce"`` (Eschenhagen et al.
    2023) every example is one: gradients summed, inputs averaged over its positions. The
    ledger holds ``Σ_t ‖g_t‖² ‖a_t‖²`` for a weight with factors (``"reduce"``:
    ``‖Σ_t g_t‖² ‖mean a‖²``), which costs nothing, and exact norms for the rest.

    Args:
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        unit: ``"position"`` squares positions of the rest by themselves.
        sharing: ``"expand"`` or ``"reduce"``.
        bias: ``"joint"`` (a bias is one more column of its weight) or ``"separate"``.
        widest: Most entries of a diagonal piece of a factor; ``None`` for whole factors.
        room: Makes the sums.
    """

    needs_inputs = True

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        coverage: Coverage,
        unit: str,
        sharing: str,
        bias: str,
        widest: int | None,
        room: Room = memory,
    ):
        super().__init__(parameters, coverage, room)
        self.plan = plan_factors(parameters, coverage, bias)
        self._unit, self._reduce, self._widest = unit, sharing == "reduce", widest
        self._owners = self._share(coverage.shared) if not self._reduce else {}
        self._joint_of = {b: w for w, b in self.plan.joint.items() if b is not None}
        self._last: tuple[str, Tensor] | None = None
        self._index: tuple[Tensor, Tensor] | None = None
        self._means: dict[str, _Means] = {}
        for name in self.plan.rest:
            self.sums[name] = self._open(tuple(parameters[name].shape), parameters[name])
        for name in self.plan.joint:
            out = self._outputs(name)
            for i, piece in enumerate(pieces(out, widest)):
                side = piece.stop - piece.start
                self.sums[f"{name}:gradients.{i}"] = self._open((side, side), parameters[name])
            if self._owners.get(name, name) == name:
                self._open_inputs(name)
        for name in self.plan.alone:
            side = parameters[name].numel()
            self.sums[f"{name}:matrix"] = self._open((side, side), parameters[name])

    def _outputs(self, name: str) -> int:
        shape = self.parameters[name].shape
        return shape[1] if name in self.coverage.outputs_second else shape[0]

    def _columns_of(self, name: str) -> int:
        joint = self.plan.joint[name] is not None
        return self.parameters[name].numel() // self._outputs(name) + joint

    @property
    def layout(self) -> tuple[BlockLayout, ...]:  # noqa: D102
        blocks = {}
        for name, bias in self.plan.joint.items():
            names = (name,) if bias is None else (name, bias)
            second = name in self.coverage.outputs_second
            inputs = self._owners.get(name, name)
            blocks[name] = BlockLayout("kronecker", names, second, inputs)
        blocks |= {name: BlockLayout("dense", (name,)) for name in self.plan.alone}
        blocks |= {name: BlockLayout("diagonal", (name,)) for name in self.plan.rest}
        return tuple(blocks[name] for name in self.parameters if name in blocks)

    def coverage_text(self) -> dict[str, str]:  # noqa: D102
        text = self.coverage.text
        return {
            name: f"exact diagonal, no Kronecker factors ({text[name]})"
            if name in self.plan.rest
            else f"Kronecker factors ({text[name]})"
            for name in self.parameters
        }

    # -- inputs -----------------------------------------------------------------------

    def inputs(self, name: str, a: Tensor, mask: Tensor | None) -> None:  # noqa: D102
        if name not in self.plan.joint:
            return
        self.complete = False
        if self._reduce:
            self._average(name, a, mask)
            return
        if not self._owns(name, a):
            return
        rows = at_least_fp32(a).flatten(0, 1)
        if mask is not None:
            rows = rows.index_select(0, self._rows(mask))
        self._add_inputs(name, rows)

    def _share(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """Each weight's owner of the input factor: the first of its group that is alike."""
        owners: dict[str, str] = {}
        for group in groups:
            first: dict[tuple[bool, int], str] = {}
            for name in group:
                if name in self.plan.joint:
                    kind = (self.plan.joint[name] is not None, self._columns_of(name))
                    owners[name] = first.setdefault(kind, name)
        return owners

    def _open_inputs(self, name: str) -> None:
        like = self.parameters[name]
        for i, piece in enumerate(pieces(self._columns_of(name), self._widest)):
            side = piece.stop - piece.start
            self.sums[f"{name}:inputs.{i}"] = self._open((side, side), like)
        self.sums[f"{name}:rows"] = self._room((), torch.float64, like.device)

    def _owns(self, name: str, a: Tensor) -> bool:
        """Whether this layer's input is to be added; sharing is checked at every call."""
        owner = self._owners.get(name, name)
        if owner == name:
            self._last = (name, a)
            return True
        if self._last is None or self._last[0] != owner or not identical(self._last[1], a):
            raise UnexpectedShapeError(
                f"{name}: its input is not that of {owner}",
                {name: f"its input is that of {owner} in some batches only"},
            )
        return False

    def _rows(self, mask: Tensor) -> Tensor:
        if self._index is None or self._index[0] is not mask:
            self._index = (mask, mask.flatten().nonzero().flatten())
        return self._index[1]

    def _average(self, name: str, a: Tensor, mask: Tensor | None) -> None:
        a = at_least_fp32(a)
        if mask is None:
            count = a.new_full((len(a),), a.shape[1])
        else:
            a = a * mask.unsqueeze(-1)
            count = mask.sum(1).to(a)
        seen = self._means.get(name)
        if seen is None or seen.counted:
            self._means[name] = _Means(a.sum(1), count)
        else:
            seen.total += a.sum(1)
            seen.count += count

    def _add_inputs(self, name: str, rows: Tensor) -> None:
        joint, width = self.plan.joint[name] is not None, self._columns_of(name)
        for i, piece in enumerate(pieces(width, self._widest)):
            total, side = self.sums[f"{name}:inputs.{i}"], piece.stop - piece.start
            if not joint or piece.stop < width:
                add_gram(rows[:, piece], total)
                continue
            part = rows[:, piece.start : width - 1]
            if side > 1:
                add_gram(part, total[:-1, :-1])
            total[:-1, -1] += part.sum(0)
            total[-1, -1] += len(rows)
        self.sums[f"{name}:rows"] += len(rows)

    # -- gradients --------------------------------------------------------------------

    def add(self, name: str, score: Score, rows: slice, draw: int) -> None:  # noqa: D102
        self.complete = False
        if name in self.plan.joint:
            norms = self._add_weight(name, score, rows)
        elif name in self.plan.alone:
            norms = self._add_bias(name, score)
        elif name in self._joint_of:
            norms = self._bias_norms(score)
        elif self._unit == "position":
            norms = score.position_squares(self.sums[name])
        else:
            norms = score.squares(self.sums[name])
        self._record(name, rows, draw, norms)

    def _add_weight(self, name: str, score: Score, rows: slice) -> Tensor:
        found = score.factors()
        if found is None:
            raise UnexpectedShapeError(name, {name: "its score has no Kronecker form"})
        g, a = map(at_least_fp32, found)
        if self._reduce:
            g, a = g.sum(1, keepdim=True), self._means[name].average(rows).unsqueeze(1)
        flat = g.flatten(0, 1)
        for i, piece in enumerate(pieces(g.shape[2], self._widest)):
            add_gram(flat[:, piece], self.sums[f"{name}:gradients.{i}"])
        return (squared_lengths(g) * squared_lengths(a)).sum(1)

    def _positions(self, score: Score) -> Tensor:
        assert isinstance(score, VectorScore)
        g = at_least_fp32(score.g if score.x is None else score.g * score.x)
        return g.sum(1, keepdim=True) if self._reduce else g

    def _add_bias(self, name: str, score: Score) -> Tensor:
        g = self._positions(score)
        add_gram(g.flatten(0, 1), self.sums[f"{name}:matrix"])
        return squared_lengths(g.flatten(1))

    def _bias_norms(self, score: Score) -> Tensor:
        return squared_lengths(self._positions(score).flatten(1))

    # -- ends -------------------------------------------------------------------------

    def close(self) -> None:  # noqa: D102
        for name, mean in self._means.items():
            if not mean.counted:
                self._add_inputs(name, mean.average(slice(None))[mean.count > 0])
                mean.counted = True

    def batch_norms(self) -> np.ndarray:  # noqa: D102
        self._means.clear()
        self._last = self._index = None
        return super().batch_norms()

    def results(self) -> dict[str, Tensor]:  # noqa: D102
        return {
            key: (mirror(total) if _is_factor(key) else total).detach().cpu()
            for key, total in self.sums.items()
        }


def squared_lengths(x: Tensor) -> Tensor:
    """``‖x‖²`` along the last dimension, in one pass over ``x`` and without a copy of it.

    Args:
        x: [..., features].

    Returns:
        [...], in the type of ``x``.
    """
    return torch.linalg.vector_norm(x, dim=-1).square_()


def _is_factor(key: str) -> bool:
    return any(word in key for word in (":gradients.", ":inputs.", ":matrix"))
