"""What makes a changed model, or a changed step."""

from fisherscope.surgery.merge import Merged, merge
from fisherscope.surgery.precondition import precondition

__all__ = ["Merged", "merge", "precondition"]
