"""Eigendecomposition of symmetric positive semi-definite matrices, in float64, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from fisherscope.errors import NonFiniteError, ParameterError

# Random vectors that stand for a whole matrix. In the worst case, rank one, its norm comes out
# at less than a third of what it is once in 200,000 times; what LAPACK gets wrong, it gets
# wrong by far more.
_PROBES = 16

_FAILURES = (
    torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
    np.linalg.LinAlgError,
)


@dataclass(frozen=True, eq=False)
class Eigen:
    """A matrix as ``vectors @ diag(values) @ vectors.T``.

    Attributes:
        values: float64 ``[n]``, ascending, at least 0.
        vectors: float64 ``[n, n]``, orthonormal columns.
        rank: Number of eigenvalues above the rounding of the matrix's own type, that is
            above ``n * eps`` times the largest.
    """

    values: Tensor
    vectors: Tensor
    rank: int


def symmetric_eigen(matrix: Tensor, name: str) -> Eigen:
    r"""Decompose a sum of outer products.

    Divide and conquer (LAPACK ``syevd``) comes first; where it doesn't converge, or its
    result doesn't satisfy :math:`\|M Q - Q \Lambda\| \le c \|M\|` and
    :math:`\|Q^T Q - 1\| \le c` with :math:`c = 100 n \epsilon_{64}` (both estimated on 16
    random vectors), ``syevr`` and then ``syev`` are tried. Asymmetry and negative eigenvalues
    count as rounding up to :math:`\sqrt{\epsilon}` of the matrix's own type times its size:
    half of its digits.

    Args:
        matrix: ``[n, n]``, symmetric positive semi-definite up to rounding.
        name: What it is, for messages.

    Returns:
        Eigenvalues, those that rounding made negative set to 0, and eigenvectors.

    Raises:
        NonFiniteError: If it holds NaN or infinity.
        ParameterError: If it is not symmetric, has negative eigenvalues, or if no driver
            decomposes it.
    """
    work = matrix.detach().double()
    if not bool(torch.isfinite(work).all()):
        raise NonFiniteError(
            f"{name} holds NaN or infinite numbers, so it has no eigenvectors. Estimate again in "
            "float32 or better; overflow of the sums is the usual cause."
        )
    eps = torch.finfo(matrix.dtype).eps
    asymmetry, largest = (work - work.T).abs().max().item(), work.abs().max().item()
    if asymmetry > math.sqrt(eps) * largest:
        raise ParameterError(
            f"{name} is not symmetric (entries of up to {largest:.3g} differ by {asymmetry:.3g} "
            "from their mirror images), so it is no sum of outer products. Estimate again."
        )
    values, vectors = _decompose((work + work.T) / 2, name)
    top = values.abs().max().item()
    if values[0].item() < -math.sqrt(eps) * top:
        raise ParameterError(
            f"{name} has the negative eigenvalue {values[0].item():.3g} (the largest is "
            f"{values[-1].item():.3g}), so it is no sum of outer products. Estimate again."
        )
    values = values.clamp(min=0)
    return Eigen(values, vectors, int((values > len(values) * eps * top).sum()))


def fidelity(mine: Eigen, theirs: Eigen) -> float:
    r"""The fidelity of two positive semi-definite matrices.

    Args:
        mine: A matrix :math:`A`.
        theirs: A matrix :math:`B` of the same size.

    Returns:
        :math:`\mathrm{tr} (A^{1/2} B A^{1/2})^{1/2}`, the sum of the singular values of
        :math:`A^{1/2} B^{1/2}`.
    """
    roots = mine.values.sqrt()[:, None] * (mine.vectors.T @ theirs.vectors) * theirs.values.sqrt()
    return float(torch.linalg.svdvals(roots).sum())


def _decompose(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    drivers: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = [
        lambda m: tuple(torch.linalg.eigh(m)),
        lambda m: _scipy(m, "evr"),
        lambda m: _scipy(m, "ev"),
    ]
    said = []
    for driver in drivers:
        try:
            values, vectors = driver(matrix)
        except _FAILURES as error:
            said.append(str(error))
            continue
        if (error := _error(matrix, values, vectors)) <= 1:
            return values, vectors
        said.append(f"residual {error:.3g} times what rounding explains")
    raise ParameterError(
        f"the eigendecomposition of {name} ({len(matrix)} x {len(matrix)}) failed: "
        f"{'; '.join(said)}. Estimate on more examples, or with a smaller widest=."
    )


def _scipy(matrix: Tensor, driver: str) -> tuple[Tensor, Tensor]:
    values, vectors = scipy.linalg.eigh(matrix.numpy(), driver=driver)
    return torch.from_numpy(values), torch.from_numpy(np.ascontiguousarray(vectors))


def _error(matrix: Tensor, values: Tensor, vectors: Tensor) -> float:
    # In units of what is allowed; NaN anywhere makes it infinite. Norms are taken over random
    # vectors x, since E ‖Rx‖² = ‖R‖² (Freivalds 1977): the products of whole matrices would
    # take half as long again as the decomposition.
    n = len(matrix)
    allowed = 100 * n * torch.finfo(torch.float64).eps
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, _PROBES), dtype=torch.float64, generator=generator) / _PROBES**0.5
    moved = vectors @ x
    norm = torch.linalg.norm(matrix).item() or 1.0
    lost = matrix @ moved - vectors @ (values.unsqueeze(1) * x)
    residual = torch.linalg.norm(lost).item() / norm
    skew = torch.linalg.norm(vectors.T @ moved - x).item()
    worst = max(residual, skew) / allowed
    return worst if math.isfinite(residual + skew) else math.inf
