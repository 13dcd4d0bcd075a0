"""Old tasks kept while a new one is learnt: elastic weight consolidation."""

from fisherscope.surgery.consolidate.ewc import EWC

__all__ = ["EWC"]
