"""Which parameters to keep: single ones, attention heads, hidden units, two of four."""

from fisherscope.analysis.masks.choice import Method, Scope, Structure, masks

__all__ = ["Method", "Scope", "Structure", "masks"]
