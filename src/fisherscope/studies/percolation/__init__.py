"""Percolation: remove weights until a task is lost, and see which ones hold it together."""

from fisherscope.studies.percolation.comparison import compare_percolation
from fisherscope.studies.percolation.plan import PercolationPlan
from fisherscope.studies.percolation.result import Percolation
from fisherscope.studies.percolation.scaling import FiniteSize, finite_size
from fisherscope.studies.percolation.study import percolation

__all__ = [
    "FiniteSize",
    "Percolation",
    "PercolationPlan",
    "compare_percolation",
    "finite_size",
    "percolation",
]
