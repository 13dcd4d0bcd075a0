"""Products of curvature matrices with vectors, without the matrix."""

from fisherscope.products.operator import Operator, operator

__all__ = ["Operator", "operator"]
