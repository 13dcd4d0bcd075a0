"""Interference: what a step for one task does to the others, predicted beside measured."""

from fisherscope.studies.interference.interference import interference
from fisherscope.studies.interference.result import Interference

__all__ = ["Interference", "interference"]
