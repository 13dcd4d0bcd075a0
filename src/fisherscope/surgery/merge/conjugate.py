"""Conjugate gradients for blocks that no common basis makes diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fisherscope.structures.blocks import EigenBlock
from fisherscope.structures.blocks.kronecker import factor_prefixes
from fisherscope.structures.eigen import Eigen, symmetric_eigen
from fisherscope.structures.factors import BlockDiagonal
from fisherscope.surgery.merge.curvature import Term

Map = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Map, pull: Tensor, inverse: Map, *, tolerance: float, iterations: int
) -> tuple[Tensor, int, float]:
    """Solve ``product(x) = pull`` within the range of the preconditioner.

    Args:
        product: A symmetric positive semi-definite map.
        pull: The right-hand side.
        inverse: The preconditioner, symmetric positive semi-definite; what it maps to zero is
            left out.
        tolerance: Relative residual to stop at, in the norm of the preconditioner.
        iterations: At most so many.

    Returns:
        The solution, the number of iterations, and the relative residual, computed anew.
    """
    x, residual = torch.zeros_like(pull), pull
    z = inverse(residual)
    direction = z
    start = size = _dot(residual, z)
    steps = 0
    while steps < iterations and size > tolerance**2 * start:
        image = product(direction)
        curvature = _dot(direction, image)
        if not curvature > 0:
            break
        step = size / curvature
        x, residual = x + step * direction, residual - step * image
        z = inverse(residual)
        size, before = _dot(residual, z), size
        direction = z + size / before * direction
        steps += 1
    if not start > 0:
        return x, 0, 0.0
    residual = pull - product(x)
    return x, steps, math.sqrt(max(_dot(residual, inverse(residual)), 0.0) / start)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def preconditioner(terms: Sequence[Term]) -> tuple[Map, int]:
    r"""One Kronecker product that is above the sum of several blocks.

    With :math:`\tilde G = \sum_i \sqrt{c_i}\, G_i` and :math:`\tilde A` alike, :math:`\tilde G
    \otimes \tilde A` is :math:`\sum_i c_i\, G_i \otimes A_i` and cross terms, all of them positive
    semi-definite. For an eigenvalue-corrected block G and A are its marginals. Floors are added
    to the eigenvalues.

    Args:
        terms: Factored blocks of one layout.

    Returns:
        Its pseudo-inverse, and the number of directions that it leaves out: those within the
        rounding of the stored sums.
    """
    gradients, inputs = zip(*(_factors(term) for term in terms), strict=True)
    floor = sum(term.weight * term.floor for term in terms)
    (q, values, known), (r, others, seen) = (_summed(side) for side in (gradients, inputs))
    spectrum = torch.outer(values, others) + floor
    kept = torch.outer(known, seen) | torch.tensor(floor > 0)
    scaled = torch.where(kept, 1 / spectrum, 0.0)

    def inverse(x: Tensor) -> Tensor:
        return r.T.before(q.after(scaled * r.before(q.T.after(x))))

    return inverse, int((~kept).sum())


def _factors(term: Term) -> tuple[list[Tensor], list[Tensor]]:
    # Each divided by its trace and given the root of the block's trace.
    block = term.block
    outputs, inputs = (block.factors[prefix].pieces for prefix in factor_prefixes(block.layout))
    if isinstance(block, EigenBlock):
        values = block.spectrum().to(outputs[0].dtype)
        outputs, inputs = _marginal(outputs, values.sum(1)), _marginal(inputs, values.sum(0))
    root = math.sqrt(term.weight * term.scale * float(block.diagonal().sum()))
    sides = []
    for pieces in (outputs, inputs):
        trace = sum(float(piece.diagonal().double().sum()) for piece in pieces)
        sides.append([piece * (root / trace if trace > 0 else 0.0) for piece in pieces])
    return sides[0], sides[1]


def _marginal(bases: Sequence[Tensor], values: Tensor) -> tuple[Tensor, ...]:
    parts = values.split([len(basis) for basis in bases])
    found = ((q * part) @ q.T for q, part in zip(bases, parts, strict=True))
    return tuple((m + m.T) / 2 for m in found)


def _summed(factors: Sequence[Sequence[Tensor]]) -> tuple[BlockDiagonal, Tensor, Tensor]:
    """Eigenvectors and eigenvalues of a sum of factors, and which are above rounding."""
    eigens: list[Eigen] = []
    for number, pieces in enumerate(zip(*factors, strict=True)):
        whole = torch.stack(list(pieces)).sum(0)
        eigens.append(symmetric_eigen(whole, f"piece {number} of the models' summed factors"))
    known = [torch.arange(len(e.values)) >= len(e.values) - e.rank for e in eigens]
    vectors = BlockDiagonal(tuple(e.vectors for e in eigens))
    return vectors, torch.cat([e.values for e in eigens]), torch.cat(known)
