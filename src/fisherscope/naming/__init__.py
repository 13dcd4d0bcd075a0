"""What a parameter's name says: where it sits, and whether it is asked for."""

from fisherscope.naming.address import address, addresses, by_layer, stacks
from fisherscope.naming.prefix import under
from fisherscope.naming.selectors import (
    Layers,
    Selection,
    Selector,
    described,
    layers,
    selectors,
    to_text,
)

__all__ = [
    "Layers",
    "Selection",
    "Selector",
    "address",
    "addresses",
    "by_layer",
    "described",
    "layers",
    "selectors",
    "stacks",
    "to_text",
    "under",
]
