"""From Fishers to answers, changing nothing: importance, similarity, masks, concentration."""

from fisherscope.analysis.address import address, addresses
from fisherscope.analysis.concentration import Concentration, concentration
from fisherscope.analysis.importance import Importance, importance
from fisherscope.analysis.masks import Overlap, masks, overlap
from fisherscope.analysis.similarity import Similarity, similarity
from fisherscope.analysis.top import TopCoordinates, top_coordinates

__all__ = [
    "Concentration",
    "Importance",
    "Overlap",
    "Similarity",
    "TopCoordinates",
    "address",
    "addresses",
    "concentration",
    "importance",
    "masks",
    "overlap",
    "similarity",
    "top_coordinates",
]
