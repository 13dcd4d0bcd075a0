"""The merge of one block: the minimum of a sum of quadratics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherscope.structures.blocks import DenseBlock, DiagonalBlock, KroneckerBlock
from fisherscope.structures.eigen import symmetric_eigen
from fisherscope.surgery.merge.conjugate import conjugate_gradients, preconditioner
from fisherscope.surgery.merge.curvature import Group, Term, weighted_mean
from fisherscope.surgery.merge.kronecker import coordinates

#: Relative residual at which conjugate gradients stop.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Solution:
    """A merged block.

    Attributes:
        value: float64, in the block's view.
        rule: How it was found.
        fallback: Number of directions in which no Fisher has a say.
        iterations: Of conjugate gradients; 0 for direct solutions.
        residual: Relative residual of conjugate gradients; 0 for direct solutions.
    """

    value: Tensor
    rule: str
    fallback: int = 0
    iterations: int = 0
    residual: float = 0.0


def solve(group: Group, values: Sequence[Tensor], start: Tensor, iterations: int) -> Solution:
    """Merge one block.

    Args:
        group: The block of every model.
        values: The models' parameters, float64, in the block's view.
        start: Where the merged ones stay in directions that no Fisher knows.
        iterations: At most so many iterations of conjugate gradients.

    Returns:
        The minimum; where it is not unique, one that doesn't leave ``start`` for nothing.
    """
    kinds = {type(term.block) for term in group.terms}
    if kinds == {DiagonalBlock}:
        weights = [term.diagonal() for term in group.terms]
        value, fallback = weighted_mean(values, weights, start)
        return Solution(value, "elementwise", fallback)
    if kinds == {DenseBlock}:
        return _dense(group.terms, values, start)
    if kinds == {KroneckerBlock} and len(values) == 2 and not any(t.floor for t in group.terms):
        return _simultaneous(group.terms, values, start)
    return _conjugate_gradients(group.terms, values, start, iterations)


def _pull(terms: Sequence[Term], values: Sequence[Tensor], start: Tensor) -> Tensor:
    # Where the models draw the start to: the right-hand side for the displacement from it.
    parts = (term.product(value - start) for term, value in zip(terms, values, strict=True))
    return sum(parts, torch.zeros_like(start))


def _dense(terms: Sequence[Term], values: Sequence[Tensor], start: Tensor) -> Solution:
    eye = torch.eye(len(start), dtype=torch.float64)
    whole = sum((term.product(eye) for term in terms), torch.zeros_like(eye))
    # In the type of the sums, whose rounding decides which eigenvalues count as zero.
    dtype = terms[0].block.dtype
    name = f"the merged block {terms[0].block.layout}"
    eigen = symmetric_eigen(whole.to(dtype), name)
    known = slice(len(start) - eigen.rank, None)
    vectors, eigenvalues = eigen.vectors[:, known], eigen.values[known]
    moved = vectors @ ((vectors.T @ _pull(terms, values, start)) / eigenvalues)
    return Solution(start + moved, "eigenvectors", len(start) - eigen.rank)


def _simultaneous(terms: Sequence[Term], values: Sequence[Tensor], start: Tensor) -> Solution:
    outputs, inputs, (first, second) = coordinates(terms)
    ys = [inputs.into(outputs.into(x - start).mT).mT for x in values]
    merged, fallback = weighted_mean(ys, [first, second], torch.zeros_like(start))
    moved = inputs.back(outputs.back(merged).mT).mT
    return Solution(start + moved, "simultaneous", fallback)


def _conjugate_gradients(
    terms: Sequence[Term], values: Sequence[Tensor], start: Tensor, iterations: int
) -> Solution:
    inverse, fallback = preconditioner(terms)
    moved, steps, residual = conjugate_gradients(
        lambda x: sum((term.product(x) for term in terms), torch.zeros_like(start)),
        _pull(terms, values, start),
        inverse,
        tolerance=TOLERANCE,
        iterations=iterations,
    )
    return Solution(start + moved, "conjugate gradients", fallback, steps, residual)


def converged(solutions: Sequence[Solution]) -> bool:
    """Whether every block is as exact as asked for.

    Args:
        solutions: The blocks.

    Returns:
        Whether all residuals are within ten times :data:`TOLERANCE` (what the recursion of
        conjugate gradients takes for its residual drifts away from the real one).
    """
    return all(math.isfinite(s.residual) and s.residual <= 10 * TOLERANCE for s in solutions)
