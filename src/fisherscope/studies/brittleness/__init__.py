"""Brittleness: what the same fine-tuning costs several models, at equal progress."""

from fisherscope.studies.brittleness.brittleness import brittleness
from fisherscope.studies.brittleness.result import Brittleness

__all__ = ["Brittleness", "brittleness"]
