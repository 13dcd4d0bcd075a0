"""The plot of ``docs/evidence.md``, on white, so that it reads on light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, and a mark each, so that colour is not needed to tell them apart.
LOOKS = {
    "obd": ("#0072b2", "o"),
    "fisher": ("#009e73", "^"),
    "magnitude": ("#d55e00", "s"),
    "random": ("#6b7280", "x"),
}


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Measured loss increase over sparsity, one panel per model and task."""
    single = [one for one in lines if one["structure"] == "weight" and one["task"] != "mean"]
    models = list(dict.fromkeys(one["model"] for one in single))
    tasks = list(dict.fromkeys(one["task"] for one in single))
    figure, grid = plt.subplots(
        len(models), len(tasks), figsize=(3.2 * len(tasks), 2.6 * len(models)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for row, model in zip(grid, models, strict=True):
        for axes, task in zip(row, tasks, strict=True):
            found = [one for one in single if (one["model"], one["task"]) == (model, task)]
            sparsity = [100 * one["sparsity"] for one in found]
            for method, (colour, mark) in LOOKS.items():
                values = [one["increase"][method] for one in found]
                middle = [one["value"] for one in values]
                axes.plot(sparsity, middle, color=colour, marker=mark, markersize=4, label=method)
                axes.fill_between(
                    sparsity, [one["low"] for one in values], [one["high"] for one in values],
                    color=colour, alpha=0.2, linewidth=0,
                )  # fmt: skip
            axes.set_title(f"{model}, {task}", fontsize=10)
            axes.set_xticks(sparsity)
            # Small increases matter as much as large ones, and some are below zero.
            axes.set_yscale("symlog", linthresh=0.01)
            axes.axhline(0, color="#9aa3ad", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("weights removed (%)", fontsize=10)
    figure.supylabel("loss increase (nats per token)", fontsize=10)
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(LOOKS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
