"""Fisher objects: what is kept of the matrix, its algebra, and how it is stored."""

from fisherscope.structures.block import BlockFisher
from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.dense import DenseFisher
from fisherscope.structures.diagonal import DiagonalFisher
from fisherscope.structures.ekfac import EKFACFisher
from fisherscope.structures.ema import FisherEMA
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.grouped import GroupedFisher
from fisherscope.structures.identity import Identity
from fisherscope.structures.io import load, save
from fisherscope.structures.kfac import KFACFisher
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.ledger import Ledger

__all__ = [
    "BlockFisher",
    "BlockLayout",
    "BlockwiseFisher",
    "DenseFisher",
    "DiagonalFisher",
    "EKFACFisher",
    "Fisher",
    "FisherEMA",
    "GroupedFisher",
    "Identity",
    "KFACFisher",
    "Ledger",
    "load",
    "save",
]
