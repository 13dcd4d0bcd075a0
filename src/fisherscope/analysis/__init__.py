"""From Fishers to answers, changing nothing: importance, similarity, masks, damage."""

from fisherscope.analysis import spectrum
from fisherscope.analysis.concentration import Concentration, concentration
from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.descent import descent_step
from fisherscope.analysis.directions import TopDirections, top_directions
from fisherscope.analysis.importance import Importance, importance
from fisherscope.analysis.masks import masks
from fisherscope.analysis.overlap import Overlap, overlap
from fisherscope.analysis.recycled import RecycledComparison, compare_recycled
from fisherscope.analysis.similarity import Similarity, similarity
from fisherscope.analysis.top import TopCoordinates, top_coordinates
from fisherscope.analysis.uncertainty import Uncertainty, uncertainty

__all__ = [
    "Concentration",
    "Damage",
    "Importance",
    "Overlap",
    "RecycledComparison",
    "Similarity",
    "TopCoordinates",
    "TopDirections",
    "Uncertainty",
    "compare_recycled",
    "concentration",
    "damage",
    "descent_step",
    "importance",
    "masks",
    "overlap",
    "similarity",
    "spectrum",
    "top_coordinates",
    "top_directions",
    "uncertainty",
]
