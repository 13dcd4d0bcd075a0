"""What makes a changed model, or a changed step."""

from fisherscope.surgery.precondition import precondition

__all__ = ["precondition"]
