"""The block-diagonal Fisher."""

from __future__ import annotations

from typing import ClassVar

from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.layout import Kind


class BlockFisher(BlockwiseFisher):
    """The exact matrix within each tensor or layer, nothing between them."""

    structure: ClassVar[str] = "block"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"dense", "diagonal"})
