"""The plots of ``docs/fisher.md``: on white, so that they read on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from choosing.estimates import ESTIMATES

Stage = dict[str, Any]
Stages = dict[str, Stage]

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#b0568e", "#6b7280"
STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa3ad",
    "xtick.color": "#3c444d",
    "ytick.color": "#3c444d",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
STRUCTURES = {"diagonal": BLUE, "kfac": ORANGE, "ekfac": GREEN, "block": PURPLE}


def draw(stages: Stages, folder: Path) -> None:
    """Write the plots.

    Args:
        stages: The figures, by stage.
        folder: Where the images lie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, figure in (
            ("estimators", estimators(stages)),
            ("structures", structures(stages)),
            ("signs", signs(stages)),
        ):
            figure.savefig(folder / f"{name}.png", dpi=160, bbox_inches="tight")
            plt.close(figure)


def backward_passes(name: str, figures: Stage) -> int:
    """How often an estimate goes back through the model for each row."""
    options, _ = ESTIMATES[name]
    if options.get("unit") == "token":
        return figures["about"]["tokens"] // figures["about"]["examples"]
    return options.get("draws", 1)


def _panels(stages: Stages, height: float) -> tuple[plt.Figure, list[Axes]]:
    size = (5.5 * len(stages), height)
    figure, axes = plt.subplots(1, len(stages), figsize=size, sharey=True, squeeze=False)
    return figure, list(axes[0])


def title(stage: str, figures: Stage) -> str:
    """What a stage is called."""
    loss = figures["about"]["held_out_loss"]
    return f"{stage}: {figures['steps']} steps, {loss:.2f} nats per character"


def _family(name: str) -> tuple[str, str, str]:
    """Colour, marker and legend of a kind of estimate."""
    if name.startswith("empirical"):
        return ORANGE, "s", "the data's labels"
    if "batches" in name:
        return PURPLE, "D", "drawn labels, squared per batch"
    if "position" in name:
        return GREY, "X", "drawn labels, squared per position"
    if name.startswith("signs"):
        return GREEN, "^", "signs"
    return BLUE, "o", "drawn labels"


def estimators(stages: Stages) -> plt.Figure:
    """Error of one estimate of the diagonal against the passes that it takes."""
    figure, axes = _panels(stages, 4.6)
    seen: dict[str, Line2D] = {}
    for axis, (stage, figures) in zip(axes, stages.items(), strict=True):
        series: dict[str, list[tuple[float, float]]] = {}
        for name in ESTIMATES:
            if name not in figures:
                continue
            row, passes = figures[name], backward_passes(name, figures)
            error = float(np.hypot(row["diagonal_bias"], row.get("diagonal_sd", 0.0)))
            colour, marker, legend = _family(name)
            series.setdefault(legend, []).append((passes, error))
            (seen[legend],) = axis.plot(
                passes, error, marker, color=colour, ms=8, label=legend, mec="white"
            )
            if (short := _short(name)) is not None:
                axis.annotate(
                    short, (passes, error), _offset(name),
                    textcoords="offset points", fontsize=8.5, color=colour,
                )  # fmt: skip
        for legend in ("drawn labels", "signs"):
            points = np.array(series.get(legend, [(np.nan, np.nan)]))
            axis.plot(*points.T, color=seen[legend].get_color(), lw=1.2, alpha=0.6)
        axis.set(xscale="log", yscale="log", title=title(stage, figures))
        axis.set_xlabel("backward passes over the data")
    axes[0].set_ylabel("‖estimate − Fisher‖ / ‖Fisher‖, diagonal")
    for axis in axes:
        axis.margins(y=0.12)
        axis.set_xlim(0.28, 45)
        steps = (0.1, 0.2, 0.5, 1, 2, 4, 8, 16)
        for scale, ticks in ((axis.xaxis, steps[3:]), (axis.yaxis, steps[:5])):
            scale.set_major_locator(FixedLocator(ticks))
            scale.set_minor_locator(NullLocator())
            scale.set_major_formatter("{x:g}")
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=3, fontsize=9.5)
    figure.subplots_adjust(bottom=0.24, wspace=0.06)
    return figure


def _short(name: str) -> str | None:
    if name.startswith("empirical"):
        return name.removeprefix("empirical, ")
    if "draw" in name:
        return None if name.startswith("signs") else name.partition(", ")[2]
    if "batches" in name:
        return name.rpartition("labels, ")[2]
    return None


def _offset(name: str) -> tuple[int, int]:
    """Where a label stands beside its point; those of one pass lie close together."""
    if "1 draw" in name:
        return 9, 6
    return (-62, -4) if name == "empirical, per example" else (9, -3)


def structures(stages: Stages) -> plt.Figure:
    """Share of the curvature along steps that each structure keeps."""
    stages = {name: s for name, s in stages.items() if "structures" in s}
    figure, axes = _panels(stages, 4.2)
    for axis, (stage, figures) in zip(axes, stages.items(), strict=True):
        kinds = list(figures["structures"])
        for i, kind in enumerate(kinds):
            for j, (name, colour) in enumerate(STRUCTURES.items()):
                found = figures["structures"][kind][name]
                y = i + (j - 1.5) * 0.19
                axis.plot(found["each"], [y] * len(found["each"]), ".", color=colour, alpha=0.3)
                axis.plot(found["interval"], [y, y], color=colour, lw=5, alpha=0.45,
                          solid_capstyle="butt")  # fmt: skip
                axis.plot(found["median"], y, "|", color=colour, ms=12, mew=2.5)
        axis.axvline(1, color="#3c444d", lw=1)
        axis.set(yticks=range(len(kinds)), yticklabels=kinds, title=title(stage, figures))
        axis.set_xlabel("structure's δᵀFδ over that of the whole matrix")
        axis.grid(visible=False, axis="y")
        axis.set_xlim(0, None)
    axes[0].invert_yaxis()
    handles = [Line2D([], [], color=c, lw=5, alpha=0.7, label=n) for n, c in STRUCTURES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.subplots_adjust(bottom=0.22, wspace=0.06)
    return figure


def signs(stages: Stages) -> plt.Figure:
    """Labels against signs: token by token over entropy, and tensor by tensor."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.05))
    stages = {name: s for name, s in stages.items() if "signs" in s}
    colours = dict(zip(stages, (GREY, BLUE), strict=False))
    for stage, figures in stages.items():
        found = figures["signs"]
        left.plot(found["token_entropy"], found["token_ratio"], "o", ms=4.5, alpha=0.65,
                  color=colours[stage], mec="none", label=stage)  # fmt: skip
        tensors = found["tensors"]
        names = [_tensor(name) for name in tensors]
        right.plot(list(tensors.values()), range(len(names)), "o", color=colours[stage], ms=6)
    for axis, text in ((left, "one token by itself: trace"), (right, "the data set: each tensor")):
        axis.set_title(text)
    left.axhline(1, color="#3c444d", lw=1)
    right.axvline(1, color="#3c444d", lw=1)
    left.set(xlabel="entropy of the predicted character, nats", yscale="log")
    left.set_ylabel("sd with labels / sd with signs\n(above 1: signs vary less)")
    left.yaxis.set_major_locator(FixedLocator((0.2, 0.5, 1, 2, 5, 10)))
    left.yaxis.set_minor_locator(NullLocator())
    left.yaxis.set_major_formatter("{x:g}")
    right.set(yticks=range(len(names)), xscale="log", xlabel="sd with labels / sd with signs")
    right.set_yticklabels(names, fontsize=8)
    right.invert_yaxis()
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("{x:g}")
    left.legend(loc="upper right")
    figure.subplots_adjust(wspace=0.4)
    return figure


def _tensor(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if "embed" in name:
        return "embedding and head"
    last = parts[-1].replace("_layernorm", " norm").replace("_", " ")
    return f"layer {parts[2]}: {last}" if "layers" in parts else last
