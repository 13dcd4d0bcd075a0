"""Several models of one architecture into one."""

from fisherscope.surgery.merge.merging import merge
from fisherscope.surgery.merge.result import Merged

__all__ = ["Merged", "merge"]
