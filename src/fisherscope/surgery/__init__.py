"""What makes a changed model, or a changed step."""

from fisherscope.surgery.consolidate import EWC
from fisherscope.surgery.merge import Merged, merge
from fisherscope.surgery.precondition import precondition
from fisherscope.surgery.prune import Sparsity, keep_pruned, prune, sparsity

__all__ = [
    "EWC",
    "Merged",
    "Sparsity",
    "keep_pruned",
    "merge",
    "precondition",
    "prune",
    "sparsity",
]
