"""Fisher objects: what is kept of the matrix, its algebra, and how it is stored."""

from fisherscope.structures.diagonal import DiagonalFisher
from fisherscope.structures.ema import FisherEMA
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.grouped import GroupedFisher
from fisherscope.structures.identity import Identity
from fisherscope.structures.io import load, save
from fisherscope.structures.ledger import Ledger

__all__ = [
    "DiagonalFisher",
    "Fisher",
    "FisherEMA",
    "GroupedFisher",
    "Identity",
    "Ledger",
    "load",
    "save",
]
