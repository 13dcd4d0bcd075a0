"""What the spectral estimators read: products of a symmetric operator with blocks of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from fisherscope.analysis.spectrum.probes import Stream, gaussian
from fisherscope.errors import NonFiniteError, ParameterError

BLOCK = 16
_CHECKS = 3
# Products of models in half precision are symmetric to about this much, and what is not
# symmetric at all misses it by far.
_ASYMMETRY = 0.01


class Operand(LinearOperator):
    """A float64 operator that counts its products, bounds their width and checks them.

    Attributes:
        n: Number of rows and columns.
        products: Number of vectors multiplied so far.
        block_size: Most vectors per product.
    """

    def __init__(self, operator: LinearOperator, block_size: int = BLOCK) -> None:
        super().__init__(np.dtype(np.float64), operator.shape)
        self.n = int(operator.shape[0])
        self.products = 0
        self.block_size = block_size
        self._operator = operator

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        product = np.empty((self.n, X.shape[1]))
        for at in self.blocks(X.shape[1]):
            block = X[:, at.start : at.stop]
            found = np.asarray(self._operator.matmat(block))
            if found.shape != block.shape:
                raise ParameterError(
                    f"operator: a product with {block.shape} has the shape {found.shape}; "
                    "matmat must return one column per column"
                )
            if not np.isfinite(found).all():
                raise NonFiniteError(
                    "operator: a product with finite vectors holds NaN or infinite values; look "
                    "at the weights and data that it was made of"
                )
            product[:, at.start : at.stop] = found
        self.products += X.shape[1]
        return product

    def blocks(self, count: int) -> list[range]:
        """Cut a number of vectors into the widest products allowed.

        Args:
            count: Number of vectors.

        Returns:
            Consecutive ranges that cover 0 to ``count``.
        """
        size = self.block_size
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    def dense(self) -> np.ndarray:
        """The whole matrix, by n products.

        Returns:
            float64 [n, n], made exactly symmetric.
        """
        matrix = self.matmat(np.eye(self.n))
        return (matrix + matrix.T) / 2


def as_linear_operator(operator: Any) -> LinearOperator:
    """Whatever acts as a square real matrix, as a scipy operator in float64.

    Args:
        operator: A ``LinearOperator``, a numpy array, a scipy sparse matrix, an object with
            ``to_scipy()``, or one with ``shape`` and ``matvec``.

    Returns:
        An operator with the same products, returned in float64.

    Raises:
        ParameterError: If it is none of these, not square, empty or complex.
    """
    if hasattr(operator, "to_scipy"):
        operator = operator.to_scipy()
    try:
        base = aslinearoperator(operator)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"operator of type {type(operator).__name__} is no linear operator; pass a "
            "LinearOperator, a two-dimensional numpy array, or an object with to_scipy()"
        ) from error
    if len(base.shape) != 2 or base.shape[0] != base.shape[1] or base.shape[0] < 1:
        raise ParameterError(f"operator has the shape {tuple(base.shape)}; it must be square")
    if base.dtype is not None and np.issubdtype(base.dtype, np.complexfloating):
        raise ParameterError("operator is complex; spectra are of real symmetric operators")
    return _Float64(base)


class _Float64(LinearOperator):
    def __init__(self, base: LinearOperator) -> None:
        super().__init__(np.dtype(np.float64), base.shape)
        self._base = base

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(self._base.matmat(X), dtype=np.float64)


def symmetric_operand(operator: Any, *, block_size: int | None, seed: int) -> Operand:
    """An operand whose symmetry was checked on random vectors.

    For independent Gaussian vectors, ``xᵀAy − yᵀAx`` has the standard deviation
    ``‖A − Aᵀ‖_F``, and ``‖Ax‖`` is about ``‖A‖_F``; three vectors make three such pairs.
    The products of the check are not counted among those of the estimate.

    Args:
        operator: As in :func:`as_linear_operator`.
        block_size: Most vectors per product; ``None`` for 16.
        seed: Of the estimate.

    Returns:
        The operand; its count is zero.

    Raises:
        ParameterError: If the operator is not symmetric, or an argument is unusable.
    """
    width = BLOCK if block_size is None else require_whole("block_size", block_size, 1)
    require_whole("seed", seed, 0)
    operand = Operand(as_linear_operator(operator), width)
    vectors = gaussian(seed, Stream.CHECK, range(_CHECKS), operand.n)
    # In two calls, so that an operator which differs from call to call is found out too.
    products = np.hstack([operand.matmat(vectors[:, :1]), operand.matmat(vectors[:, 1:])])
    form = vectors.T @ products
    scale = np.linalg.norm(products, axis=0).max()
    worst = np.abs(form - form.T).max()
    if worst > _ASYMMETRY * scale:
        raise ParameterError(
            f"operator is not symmetric: xᵀAy and yᵀAx differ by {worst / scale:.1e} of ‖Ax‖ "
            "for random x and y. Pass a symmetric operator whose products are the same at every "
            "call (the same data, no dropout)."
        )
    operand.products = 0
    return operand


def require_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An argument that must be a whole number.

    Args:
        name: Of the argument, for the message.
        value: As the caller gave it.
        least: Smallest that makes sense.
        most: Largest that makes sense; ``None`` for no limit.

    Returns:
        The value as an ``int``.

    Raises:
        ParameterError: If it is no whole number or out of range.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"between {least} and {most}"
        raise ParameterError(f"{name}={value!r} must be a whole number {span}")
    return int(value)
