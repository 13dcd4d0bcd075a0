"""Gradient conflict between tasks: by layer, by example, and what removing examples does."""

from fisherscope.studies.conflict.conflict import Conflict, conflict
from fisherscope.studies.conflict.removal import Removal, removal

__all__ = ["Conflict", "Removal", "conflict", "removal"]
