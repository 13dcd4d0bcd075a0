"""From Fishers to answers, changing nothing: importance, similarity, masks, damage."""

from fisherscope.analysis import spectrum
from fisherscope.analysis.asymmetry import Asymmetry, asymmetry
from fisherscope.analysis.concentration import Concentration, concentration
from fisherscope.analysis.damage import Damage, damage
from fisherscope.analysis.damage_index import DamageIndex, damage_index
from fisherscope.analysis.descent import descent_step, mean_gradient
from fisherscope.analysis.directions import TopDirections, top_directions
from fisherscope.analysis.importance import Importance, importance
from fisherscope.analysis.masks import masks
from fisherscope.analysis.overlap import Overlap, overlap
from fisherscope.analysis.recycled import RecycledComparison, compare_recycled
from fisherscope.analysis.similarity import Similarity, similarity
from fisherscope.analysis.step_damage import StepDamage, step_damage
from fisherscope.analysis.top import TopCoordinates, top_coordinates
from fisherscope.analysis.uncertainty import Uncertainty, uncertainty

__all__ = [
    "Asymmetry",
    "Concentration",
    "Damage",
    "DamageIndex",
    "Importance",
    "Overlap",
    "RecycledComparison",
    "Similarity",
    "StepDamage",
    "TopCoordinates",
    "TopDirections",
    "Uncertainty",
    "asymmetry",
    "compare_recycled",
    "concentration",
    "damage",
    "damage_index",
    "descent_step",
    "importance",
    "masks",
    "mean_gradient",
    "overlap",
    "similarity",
    "spectrum",
    "step_damage",
    "top_coordinates",
    "top_directions",
    "uncertainty",
]
