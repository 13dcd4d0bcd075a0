"""The whole Fisher matrix."""

from __future__ import annotations

from typing import ClassVar

from fisherscope.errors import ParameterError
from fisherscope.structures.blockwise import BlockwiseFisher
from fisherscope.structures.layout import Kind


class DenseFisher(BlockwiseFisher):
    """The exact matrix over all parameters, for small models."""

    structure: ClassVar[str] = "dense"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"dense"})

    def _keys(self) -> list[str]:
        if len(self.layout) != 1:
            raise ParameterError(
                f"a dense Fisher is one block over all parameters, not {len(self.layout)}; several "
                'blocks make structure="block".'
            )
        return super()._keys()
