"""Which single weights may move: chosen by Fishers, and as many at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fisherscope.analysis.access import squares, top
from fisherscope.analysis.masks.scores import uniforms
from fisherscope.errors import ParameterError
from fisherscope.structures import Fisher

Tensors = Mapping[str, Tensor]


def pooled(fishers: Sequence[Fisher], names: Sequence[str]) -> dict[str, Tensor]:
    r"""The mean of several diagonals, each divided by its own mean.

    So every task weighs alike, however sharp its predictions are.

    Args:
        fishers: Diagonal Fishers.
        names: The parameters that count.

    Returns:
        Parameter name to float64 tensor; the mean over all coordinates is 1.

    Raises:
        ParameterError: If a Fisher is zero everywhere.
    """
    total: dict[str, Tensor] = {}
    for number, fisher in enumerate(fishers):
        sums = {name: squares(fisher)[name].double() for name in names}
        mean = math.fsum(float(t.sum()) for t in sums.values()) / sum(
            map(torch.numel, sums.values())
        )
        if not mean > 0:
            raise ParameterError(
                f"Fisher {number} is zero at every weight that may move: nothing there matters to "
                "its task, so there is nothing to choose by"
            )
        for name, tensor in sums.items():
            share = tensor / (mean * len(fishers))
            total[name] = total[name] + share if name in total else share
    return total


def frozen(old: Tensors, share: float, scope: str) -> dict[str, Tensor]:
    """All but the coordinates that the old tasks need most.

    Args:
        old: Parameter name to the old tasks' diagonal, as :func:`pooled` makes it.
        share: Share that is frozen.
        scope: ``"global"`` or ``"tensor"``.

    Returns:
        Every parameter to a boolean tensor, true where a weight may move.
    """
    return {name: ~chosen for name, chosen in largest(old, share, scope).items()}


def guided(new: Tensors, old: Tensors, share: float, scope: str) -> dict[str, Tensor]:
    r"""Only the coordinates where the new task's Fisher is large beside the old tasks'.

    The score is :math:`r_i = n_i / (o_i + 1)` with both diagonals divided by their means: the 1,
    an average coordinate's Fisher, keeps those from winning that neither needs. With o = 0 this is
    the FISH mask.

    Args:
        new: Parameter name to the new task's diagonal, as :func:`pooled` makes it.
        old: The old tasks'.
        share: Share that may move.
        scope: ``"global"`` or ``"tensor"``.

    Returns:
        Every parameter to a boolean tensor, true where a weight may move.

    Source:
        Sung, Nair, Raffel: Training neural networks with fixed sparse masks (2021), for the mask
        by the new task's Fisher. Tan et al.: FGGM, Fisher-guided gradient masking for continual
        learning (2026), for masks by Fisher against forgetting. The ratio is ours.
    """
    return largest({name: new[name] / (old[name] + 1) for name in new}, share, scope)


def shuffled(masks: Tensors, seed: int) -> dict[str, Tensor]:
    """Random masks with as many true entries in every tensor.

    Args:
        masks: Parameter name to boolean tensor.
        seed: Of the choice, which depends on seed and name alone.

    Returns:
        The same names.
    """
    found = {}
    for name, mask in masks.items():
        chosen = top(uniforms(seed, name, mask.numel()).numpy(), int(mask.sum()))
        found[name] = torch.from_numpy(chosen).reshape(mask.shape)
    return found


def largest(scores: Tensors, share: float, scope: str) -> dict[str, Tensor]:
    """Mark the largest scores; of equal ones those that come first.

    Args:
        scores: Parameter name to scores.
        share: Share to mark, rounded to the nearest number, of the whole at least one.
        scope: ``"global"``, of all together, or ``"tensor"``, of each.

    Returns:
        Parameter name to boolean tensor.
    """
    flat = [score.reshape(-1).numpy() for score in scores.values()]
    if scope == "tensor":
        parts = [top(part, round(share * len(part))) for part in flat]
    else:
        everything = np.concatenate(flat)
        chosen = top(everything, max(1, round(share * len(everything))))
        parts = np.split(chosen, np.cumsum([len(part) for part in flat])[:-1])
    return {
        name: torch.from_numpy(part.copy()).reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }
