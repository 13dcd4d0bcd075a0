"""The figures of the report, in page order: a new figure is one file and one line here."""

from fisherscope.report.figures import concentration, damage, heatmap, overlap, similarity
from fisherscope.report.figures.base import FigureData, FigureSpec, View

REGISTRY: tuple[FigureSpec, ...] = (
    heatmap.FIGURE,
    concentration.FIGURE,
    similarity.FIGURE,
    overlap.FIGURE,
    damage.FIGURE,
)

__all__ = ["REGISTRY", "FigureData", "FigureSpec", "View"]
