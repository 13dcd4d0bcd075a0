"""Which parameters to keep, and how far two choices coincide."""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom
from torch import Tensor, nn

from fisherscope.analysis.access import require_diagonal, top, weights
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.naming import address
from fisherscope.results import Result
from fisherscope.structures import Fisher

Method = Literal["fisher", "obd", "magnitude", "random"]
Scope = Literal["global", "tensor"]

_SHOWN = 5


def masks(
    fisher: Fisher,
    sparsity: float,
    *,
    model: nn.Module | None = None,
    method: Method = "fisher",
    scope: Scope = "global",
    structure: str = "weight",
    protect: Literal["default"] | str | Sequence[str] | None = "default",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Masks that remove the least important parameters; true means keep.

    Exactly ``round(sparsity * n)`` of the ``n`` parameters that are not protected are
    removed (of each tensor, for that scope). Of equal scores the ones with the lower index
    are kept. Nothing is changed: the masks are returned.

    Args:
        fisher: A diagonal Fisher. For ``"magnitude"`` and ``"random"`` it only says which
            parameters there are.
        sparsity: Fraction to remove, from 0 to 1.
        model: The model that was estimated; needed for ``"obd"`` and ``"magnitude"``.
        method: What a parameter is scored by: ``"fisher"`` (:math:`F`), ``"obd"``
            (:math:`\tfrac12 F \theta^2`, the expected cost of its removal), ``"magnitude"``
            (:math:`|\theta|`), or ``"random"``. Default: ``"fisher"``.
        scope: ``"global"`` (one threshold for all tensors) or ``"tensor"`` (the same sparsity
            in each). Default: ``"global"``.
        structure: ``"weight"``, single parameters. Default: ``"weight"``.
        protect: Which tensors to leave whole: ``"default"`` (embeddings, norms, the output
            head, and all vectors and scalars, so every bias), glob pattern or patterns over
            parameter names (one of them may be ``"default"``), or ``None``. Default:
            ``"default"``.
        seed: Seed of ``"random"``, whose scores depend on seed and parameter name alone.
            Default: ``0``.

    Returns:
        Parameter name to boolean CPU tensor of the parameter's shape. Protected tensors are
        not in it.

    Raises:
        ParameterError: If an option is unknown or out of range, if a pattern matches no
            parameter, if everything is protected, if ``model`` is missing or another model,
            or if a grouped Fisher is to score single parameters.
    """  # noqa: DOC502 (partly raised by callees)
    for option, value, known in (
        ("method", method, get_args(Method)),
        ("scope", scope, get_args(Scope)),
        ("structure", structure, ("weight",)),
    ):
        if value not in known:
            raise ParameterError(f"{option}={value!r} is unknown; use one of {list(known)}.")
    if not 0 <= sparsity <= 1:
        raise ParameterError(f"sparsity={sparsity!r} must be from 0 to 1.")
    shapes = fisher.identity.parameters
    guarded = _protected(shapes, protect)
    names = [name for name in shapes if name not in guarded]
    if not names:
        raise ParameterError(
            f"all {len(shapes)} tensors are protected, so there is nothing to mask. Pass "
            "protect=None or fewer patterns."
        )
    scores = _scores(fisher, names, model, method, seed)
    if scope == "tensor":
        kept = {name: _keep(scores[name], sparsity) for name in names}
    else:
        whole = _keep(np.concatenate([scores[name] for name in names]), sparsity)
        stops = np.cumsum([len(scores[name]) for name in names])[:-1]
        kept = dict(zip(names, np.split(whole, stops), strict=True))
    return {
        name: torch.from_numpy(keep.copy()).reshape(shapes[name]) for name, keep in kept.items()
    }


def _keep(scores: np.ndarray, sparsity: float) -> np.ndarray:
    return top(scores, len(scores) - round(sparsity * len(scores)))


def _protected(
    shapes: Mapping[str, tuple[int, ...]], protect: str | Sequence[str] | None
) -> set[str]:
    patterns = [protect] if isinstance(protect, str) else list(protect or ())
    guarded: set[str] = set()
    for pattern in patterns:
        if pattern == "default":
            guarded |= {
                name
                for name, shape in shapes.items()
                if len(shape) < 2 or address(name)[1] in {"embed", "norm", "head"}
            }
        elif matched := fnmatch.filter(shapes, pattern):
            guarded.update(matched)
        else:
            raise ParameterError(
                f"protect={pattern!r} matches none of the {len(shapes)} parameters; their names "
                f"begin with {', '.join(map(repr, list(shapes)[:_SHOWN]))}."
            )
    return guarded


def _scores(
    fisher: Fisher, names: list[str], model: nn.Module | None, method: Method, seed: int
) -> dict[str, np.ndarray]:
    # One flat vector of scores per tensor; larger is more important.
    if method == "random":
        shapes = fisher.identity.parameters
        return {name: _uniforms(seed, name, math.prod(shapes[name])) for name in names}
    wanted = f'masks(method="{method}")'
    if method != "magnitude":
        require_diagonal(fisher, wanted)
    sums = {name: fisher.sums[name].reshape(-1) for name in names}
    if method == "fisher":
        return {name: tensor.numpy() for name, tensor in sums.items()}
    theta = {n: w.reshape(-1).double() for n, w in weights(fisher, model, wanted).items()}
    if method == "magnitude":
        return {name: theta[name].abs().numpy() for name in names}
    return {name: (sums[name].double() * theta[name].square()).numpy() for name in names}


def _uniforms(seed: int, name: str, n: int) -> np.ndarray:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
    return np.random.default_rng([seed, key]).random(n)


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
    sizes = np.arange(low, high + 1)
    probabilities = hypergeom.pmf(sizes, n, kept_a, kept_b)
    return float(probabilities @ (sizes / (kept_a + kept_b - sizes)))


def _expected_jaccard(sizes: int, mean: float, variance: float) -> float:
    # Expected x / (sizes - x) to second order in the spread of the intersection x.
    union = sizes - mean
    return mean / union + sizes / union**3 * variance if union > 0 else math.nan
