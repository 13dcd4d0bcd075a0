"""The eigenvalue-corrected Kronecker-factored Fisher."""

from __future__ import annotations

from typing import ClassVar

from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.layout import Kind


class EKFACFisher(BlockwiseFisher):
    r"""KFAC's eigenvectors with the second moments along them, diagonals elsewhere.

    The block of a layer is :math:`Q \,\mathrm{diag}(\Lambda) Q^T` with :math:`\Lambda = \sum_n
    (Q^T s_n)^{\circ 2}`: in the Frobenius norm the closest matrix with these eigenvectors, so
    at least as close as KFAC, and of the exact trace. Two of them add up only over one
    basis. Source: George et al. (2018).
    """

    structure: ClassVar[str] = "ekfac"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"eigen", "diagonal"})
