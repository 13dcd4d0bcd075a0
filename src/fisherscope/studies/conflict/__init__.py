"""Gradient conflict between tasks: by layer, by example, and what removing examples does."""

from fisherscope.studies.conflict.conflict import Conflict, conflict

__all__ = ["Conflict", "conflict"]
