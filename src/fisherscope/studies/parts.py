"""What several studies take from a task: its stored Fishers, and sums of tensors by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from fisherscope.data import Example
from fisherscope.defaults import FisherConfig
from fisherscope.estimation import estimate
from fisherscope.naming import by_layer
from fisherscope.structures import Fisher, KFACFisher


def stored_fishers(
    model: nn.Module,
    rows: list[Example],
    structures: Sequence[str],
    config: FisherConfig,
    *,
    progress: bool,
) -> dict[str, Fisher]:
    """Fishers of several structures, with labels drawn from the model.

    Args:
        model: The model; it comes back untouched.
        rows: The task.
        structures: Their names.
        config: Likelihood, draws, seed and batch size.
        progress: Show progress bars.

    Returns:
        Structure to Fisher, in their order.
    """
    found: dict[str, Fisher] = {}
    for structure in structures:
        # The eigenvectors of EKFAC are those of the KFAC that is there already.
        basis = found.get("kfac") if structure == "ekfac" else None
        found[structure] = estimate(
            model,
            rows,
            structure=structure,
            fisher_type="mc",
            likelihood=config.likelihood,
            draws=config.draws,
            seed=config.seed,
            batch_size=config.batch_size,
            progress=progress,
            basis=basis if isinstance(basis, KFACFisher) else None,
        )
    return found


def summed_by_layer(tensors: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """First and second order summed over the tensors of a layer.

    Args:
        tensors: Columns ``tensor``, ``first``, ``second``, and the keys.
        keys: Columns within which to sum.

    Returns:
        The keys, ``layer``, ``first`` and ``second``, in order of appearance.
    """
    layer = {t: label for t, (_, label) in by_layer(dict.fromkeys(tensors["tensor"])).items()}
    sums: dict[tuple[Any, ...], list[float]] = {}
    for row in tensors.to_dict("records"):
        place = (*(row[key] for key in keys), layer[row["tensor"]])
        total = sums.setdefault(place, [0.0, 0.0])
        total[0] += row["first"]
        total[1] += row["second"]
    return pd.DataFrame(
        [(*place, *total) for place, total in sums.items()],
        columns=pd.Index([*keys, "layer", "first", "second"]),
    )
