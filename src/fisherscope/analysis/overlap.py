"""How far two masks keep the same parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fisherscope.arguments import check_tensors
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.results import Result

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Overlap(Result):
    """How far the kept parameters of two masks coincide.

    Attributes:
        n: Number of parameters that both masks decide about.
        kept_a: How many of them the first mask keeps.
        kept_b: How many the second keeps.
        both: How many both keep.
        jaccard: ``both`` over the number that at least one keeps.
        smaller: ``both`` over the smaller of ``kept_a`` and ``kept_b``.
        chance: Expected ``jaccard`` of two random choices of these sizes out of all ``n``.
        excess: ``jaccard - chance``.
        smaller_chance: Expected ``smaller`` of the same.
        chance_within: Expected ``jaccard`` of random choices that keep as many of each
            tensor as these do. What exceeds ``chance`` but not this is agreement on the
            tensors, not on the parameters within them.
        frame: One row per tensor, see :meth:`to_frame`.
    """

    n: int
    kept_a: int
    kept_b: int
    both: int
    jaccard: float
    smaller: float
    chance: float
    excess: float
    smaller_chance: float
    chance_within: float
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per tensor.

        Returns:
            ``tensor`` and, for it alone, the numbers named in the attributes.
        """
        return self.frame.copy()


def overlap(masks_a: Mapping[str, Tensor], masks_b: Mapping[str, Tensor]) -> Overlap:
    """How far two masks keep the same parameters.

    It is about the kept sets (true in the masks), whatever their size: identical masks have
    1, disjoint ones 0, and ``chance`` says what unrelated ones would have, from the
    hypergeometric distribution of the intersection. A ratio whose sets are empty is NaN.

    Args:
        masks_a: Parameter name to boolean tensor, true = keep.
        masks_b: The same for the same tensors.

    Returns:
        The overlap in all and per tensor.

    Raises:
        IdentityError: If the two have different tensors or shapes.
        ParameterError: If there are no masks, or one is not boolean.
    """
    for which, masks in (("masks_a", masks_a), ("masks_b", masks_b)):
        check_tensors(which, masks, "{parameter name: mask}")
    differing = [
        name
        for name in {**masks_a, **masks_b}
        if name not in masks_a or name not in masks_b or masks_a[name].shape != masks_b[name].shape
    ]
    if differing:
        raise IdentityError(
            f"{len(differing)} tensors are in one set of masks only or differ in shape: "
            f"{', '.join(map(repr, differing[:_SHOWN]))}. Make both with the same protect= and "
            "on the same parameters."
        )
    if not masks_a:
        raise ParameterError("there are no masks to compare.")
    for mask in (*masks_a.values(), *masks_b.values()):
        if mask.dtype != torch.bool:
            raise ParameterError(f"masks must be boolean (true = keep), not {mask.dtype}.")

    counts = np.array([
        [mask.numel(), int(mask.sum()), int(other.sum()), int((mask & other).sum())]
        for mask, other in ((masks_a[name], masks_b[name]) for name in masks_a)
    ])
    frame = pd.DataFrame([_agreement(*row) for row in counts.tolist()])
    frame.insert(0, "tensor", list(masks_a))
    n, kept_a, kept_b = counts[:, 0], counts[:, 1], counts[:, 2]
    filled = np.maximum(n, 1)
    mean = kept_a * kept_b / filled
    variance = mean * (1 - kept_a / filled) * (n - kept_b) / np.maximum(n - 1, 1)
    both_sizes = int(kept_a.sum() + kept_b.sum())
    whole = _agreement(*counts.sum(0).tolist())
    within = _expected_jaccard(both_sizes, float(mean.sum()), float(variance.sum()))
    if len(counts) == 1:
        within = whole["chance"]
    return Overlap(**whole, chance_within=within, frame=frame)


def _agreement(n: int, kept_a: int, kept_b: int, both: int) -> dict[str, Any]:
    union, smaller = kept_a + kept_b - both, min(kept_a, kept_b)
    jaccard = both / union if union else math.nan
    chance = _chance(n, kept_a, kept_b)
    return {
        "n": n,
        "kept_a": kept_a,
        "kept_b": kept_b,
        "both": both,
        "jaccard": jaccard,
        "smaller": both / smaller if smaller else math.nan,
        "chance": chance,
        "excess": jaccard - chance,
        "smaller_chance": max(kept_a, kept_b) / n if smaller else math.nan,
    }


def _chance(n: int, kept_a: int, kept_b: int) -> float:
    # Expected Jaccard index of two uniformly random subsets of these sizes.
    if not kept_a + kept_b:
        return math.nan
    mean = kept_a * kept_b / n
    spread = math.sqrt(mean * (1 - kept_a / n) * (n - kept_b) / max(n - 1, 1))
    # Beyond twelve standard deviations the distribution holds less than rounding errors.
    low = max(0, kept_a + kept_b - n, math.floor(mean - 12 * spread - 12))
    high = min(kept_a, kept_b, math.ceil(mean + 12 * spread + 12))
    sizes = np.arange(low, high + 1, dtype=float)
    # The hypergeometric distribution from the ratios of its neighbours: no factorials.
    grown = sizes[:-1]
    ratios = (kept_a - grown) * (kept_b - grown) / ((grown + 1) * (n - kept_a - kept_b + grown + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    probabilities = np.exp(logs - logs.max())
    return float(probabilities @ (sizes / (kept_a + kept_b - sizes)) / probabilities.sum())


def _expected_jaccard(sizes: int, mean: float, variance: float) -> float:
    # Expected x / (sizes - x) to second order in the spread of the intersection x.
    union = sizes - mean
    return mean / union + sizes / union**3 * variance if union > 0 else math.nan
