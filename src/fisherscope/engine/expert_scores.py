"""The score of a stack of matrices of which every row of the input uses a few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fisherscope.engine.contraction import at_least_fp32 as fp32
from fisherscope.engine.scores import MatrixScore, Score, VectorScore

# Examples of one expert are padded to a common number of rows unless that wastes more.
_WASTE = 2


@dataclass(frozen=True)
class ExpertScore(Score):
    """Experts stacked along the first dimension: ``G_n[e] = Σ g_sᵀ a_s`` over routed rows s.

    The sum runs over the rows of example ``n`` that were routed to expert ``e``. One expert at
    a time is a plain matrix (or vector) score of the examples that chose it, so that no more
    than one expert's matrix is ever formed. The shapes: ``rows`` pairs of a position and an
    expert that it chose.
    """

    g: Tensor  # [rows, out]
    a: Tensor | None  # [rows, in]; None for a bias
    expert: Tensor  # [rows]
    example: Tensor  # [rows]; rows are sorted by expert, then by example
    batch: int
    transposed: bool = False  # experts stored as [in, out]
    kind = "experts"

    def _parts(self) -> Iterator[tuple[int, Tensor, Score]]:
        """Of each expert that was chosen: its number, some examples [k], and their score."""
        keys, counts = torch.unique_consecutive(
            self.expert * self.batch + self.example, return_counts=True
        )
        keys, counts = keys.cpu(), counts.cpu()
        starts = counts.cumsum(0) - counts
        experts, examples = keys // self.batch, keys % self.batch
        for expert in experts.unique().tolist():
            own = (experts == expert).nonzero().flatten()
            for some in _alike(own, counts[own]):
                longest = int(counts[some].max())
                steps = torch.arange(longest)
                filled = steps < counts[some].unsqueeze(1)
                rows = (starts[some].unsqueeze(1) + steps * filled).to(self.g.device)
                # Rows that only fill up count for nothing as soon as one side of them is zero.
                g = fp32(self.g[rows]) * filled.unsqueeze(2).to(self.g.device)
                score = (
                    VectorScore(g)
                    if self.a is None
                    else MatrixScore(g, fp32(self.a[rows]), self.transposed)
                )
                yield expert, examples[some].to(self.g.device), score

    def _norms(self) -> Tensor:
        return fp32(self.g).new_zeros(self.batch)

    def _scratch(self) -> Tensor:
        """Group sums of one expert, for scores that want somewhere to add them."""
        out = self.g.shape[1]
        shape = (out,) if self.a is None else (1, out) if self.transposed else (out, 1)
        return fp32(self.g).new_zeros(shape)

    def squares(self, total: Tensor) -> Tensor:  # noqa: D102
        norms = self._norms()
        for expert, examples, part in self._parts():
            norms.index_add_(0, examples, part.squares(total[expert]))
        return norms

    def row_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        norms = self._norms()
        for expert, examples, part in self._parts():
            own = part.row_squares(self._scratch())
            total[expert] += own.sum()
            norms.index_add_(0, examples, own)
        return norms

    def position_squares(self, total: Tensor) -> Tensor:  # noqa: D102
        norms = self._norms()
        whole = self.g.shape[1] * (1 if self.a is None else self.a.shape[1])
        grouped = total[0].numel() != whole
        for expert, examples, part in self._parts():
            own = part.position_squares(self._scratch() if grouped else total[expert])
            if grouped:
                total[expert] += own.sum()
            norms.index_add_(0, examples, own)
        return norms

    def inner(self, delta: Tensor) -> Tensor:  # noqa: D102
        found = self._norms()
        for expert, examples, part in self._parts():
            found.index_add_(0, examples, part.inner(delta[expert]).to(found.dtype))
        return found

    def add(self, total: Tensor, weights: Tensor | None = None) -> None:  # noqa: D102
        for expert, examples, part in self._parts():
            part.add(total[expert], None if weights is None else weights[examples])

    def dense(self, rows: slice, shape: Sequence[int]) -> Tensor:  # noqa: D102
        start, stop, _ = rows.indices(self.batch)
        whole = fp32(self.g).new_zeros((stop - start, *shape))
        some = (self.example >= start) & (self.example < stop)
        a = None if self.a is None else self.a[some]
        own = replace(
            self, g=self.g[some], a=a, expert=self.expert[some], example=self.example[some]
        )
        for expert, examples, part in own._parts():
            whole[examples - start, expert] = part.dense(slice(0, len(examples)), shape[1:])
        return whole

    def merge(self, other: Score) -> Score | None:  # noqa: D102
        if not isinstance(other, ExpertScore) or other.transposed != self.transposed:
            return None
        if (self.a is None) != (other.a is None):
            return None
        expert = torch.cat([self.expert, other.expert])
        example = torch.cat([self.example, other.example])
        order = torch.argsort(expert * self.batch + example, stable=True)
        a = None
        if self.a is not None and other.a is not None:
            a = torch.cat([self.a, other.a])[order]
        g = torch.cat([self.g, other.g])[order]
        return replace(self, g=g, a=a, expert=expert[order], example=example[order])


def _alike(segments: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """Segments that are padded together: all of them, or those of one power of two."""
    if len(segments) * int(counts.max()) <= _WASTE * int(counts.sum()):
        yield segments
        return
    power = torch.frexp((counts - 1).double())[1]
    for value in power.unique():
        yield segments[power == value]
