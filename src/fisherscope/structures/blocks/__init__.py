"""The kinds of blocks: what each keeps, and its algebra. A new kind is one file and one line."""

from fisherscope.structures.blocks.block import BlockMatrix
from fisherscope.structures.blocks.dense import DenseBlock
from fisherscope.structures.blocks.diagonal import DiagonalBlock
from fisherscope.structures.blocks.eigen import EigenBlock
from fisherscope.structures.blocks.kronecker import KroneckerBlock

__all__ = ["BlockMatrix", "DenseBlock", "DiagonalBlock", "EigenBlock", "KroneckerBlock"]
