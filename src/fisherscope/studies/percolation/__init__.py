"""Percolation: remove weights until a task is lost, and see which ones hold it together."""

from fisherscope.studies.percolation.result import Percolation, PercolationPlan
from fisherscope.studies.percolation.study import percolation

__all__ = ["Percolation", "PercolationPlan", "percolation"]
