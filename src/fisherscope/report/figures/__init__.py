"""The figures of the pages, in their order: a new figure is one file and one line here."""

from fisherscope.report.figures import (
    breaking,
    changes,
    concentration,
    critical,
    damage,
    heatmap,
    moved,
    overlap,
    path,
    phase,
    predicted,
    ratios,
    remedies,
    removal,
    sharpness,
    similarity,
    structural,
    studied,
    tradeoff,
    versus,
)
from fisherscope.report.figures.base import FigureData, FigureSpec, View

REGISTRY: tuple[FigureSpec, ...] = (
    heatmap.FIGURE,
    concentration.FIGURE,
    similarity.FIGURE,
    overlap.FIGURE,
    damage.FIGURE,
)

COMPARISON: tuple[FigureSpec, ...] = (changes.FIGURE, moved.FIGURE)

# Kind of study, as its results name it, to the figures of its page.
STUDIES: dict[str, tuple[FigureSpec, ...]] = {
    "brittleness": (breaking.FIGURE, ratios.FIGURE, sharpness.FIGURE),
    "forgetting": (path.FIGURE, predicted.FIGURE),
    "interference": (
        studied.DAMAGE,
        predicted.FIGURE,
        studied.CONFLICT,
        studied.CONFLICTING,
    ),
    "percolation": (
        removal.FIGURE,
        versus.FIGURE,
        phase.FIGURE,
        critical.FIGURE,
        structural.FIGURE,
    ),
    "remedies": (remedies.FIGURE, tradeoff.FIGURE),
}

__all__ = ["COMPARISON", "REGISTRY", "STUDIES", "FigureData", "FigureSpec", "View"]
