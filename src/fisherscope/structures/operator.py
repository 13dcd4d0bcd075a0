"""A Fisher as a matrix over flattened parameters: explicit, or for scipy's solvers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.vectors import flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]
Product = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

#: Parameters up to which the whole matrix is made; it takes 512 MiB then.
LARGEST = 8192
_ROWS = 512


def matrix(product: Product, shapes: Shapes, size: int) -> Tensor:
    """The matrix of a symmetric product.

    Args:
        product: Multiplies batches of vectors by it.
        shapes: Names and shapes of the parameters.
        size: Number of parameters.

    Returns:
        float64 ``[size, size]``, parameters flattened row-major in the order of ``shapes``.

    Raises:
        ParameterError: If there are more than :data:`LARGEST` parameters.
    """
    if size > LARGEST:
        raise ParameterError(
            f"the matrix of {size} parameters would take {8 * size**2 / 2**30:.1f} GiB; dense() "
            f"makes it for up to {LARGEST}. Use matvec() or to_scipy(), or estimate fewer "
            "parameters (parameters=)."
        )
    rows = torch.eye(size, dtype=torch.float64).split(_ROWS)
    return torch.cat([flatten(product(unflatten(part, shapes)), shapes).double() for part in rows])


class FisherOperator(LinearOperator):
    """The same for scipy, without the matrix: a float64 operator of shape ``(size, size)``.

    Args:
        product: Multiplies batches of vectors by the symmetric matrix.
        shapes: Names and shapes of the parameters.
        size: Number of parameters.
    """

    def __init__(self, product: Product, shapes: Shapes, size: int):
        super().__init__(np.dtype(np.float64), (size, size))
        self._product, self._shapes = product, shapes

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(np.ascontiguousarray(X.T, dtype=np.float64))
        product = self._product(unflatten(rows, self._shapes))
        return flatten(product, self._shapes).double().numpy().T

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1))

    # The matrix is symmetric.
    _rmatmat = _matmat
    _rmatvec = _matvec
