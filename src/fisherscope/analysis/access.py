"""What the analyses read: a Fisher as one long vector, and the weights beside it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import IdentityError, NonFiniteError, ParameterError
from fisherscope.structures import BlockwiseFisher, Fisher, GroupedFisher
from fisherscope.structures.pooled import of_run

_SHOWN = 5
_INDEX_BITS = np.uint64(32)
_INDEX = np.uint64(2**32 - 1)


def squares(fisher: Fisher) -> dict[str, Tensor]:
    """Sums of squared scores: of a diagonal or grouped Fisher its own, of others the diagonal's.

    Args:
        fisher: Any Fisher.

    Returns:
        Parameter name to tensor, not divided by any count; not to be changed in place.
    """
    if isinstance(fisher, BlockwiseFisher):
        return {name: tensor * fisher.draws for name, tensor in fisher.diagonal("sum").items()}
    return fisher.sums


def flat(fisher: Fisher) -> np.ndarray:
    """All sums of squared scores, one after another in the model's order.

    Args:
        fisher: Any Fisher.

    Returns:
        Vector of the sums' own type (not divided by any count), a copy.
    """
    sums = squares(fisher)
    return np.concatenate([sums[name].reshape(-1).numpy() for name in fisher.identity.parameters])


def extents(fisher: Fisher) -> dict[str, slice]:
    """Where each tensor lies in :func:`flat`.

    Args:
        fisher: Any Fisher.

    Returns:
        Parameter name to slice.
    """
    places, start = {}, 0
    for name, shape in fisher.identity.parameters.items():
        grouped = isinstance(fisher, GroupedFisher)
        stop = start + (fisher.sums[name].numel() if grouped else math.prod(shape))
        places[name] = slice(start, stop)
        start = stop
    return places


def order(values: np.ndarray) -> np.ndarray:
    """Indices from the largest value to the smallest; equal values by lower index first.

    Args:
        values: Non-negative vector without NaN.

    Returns:
        Integer vector of indices.
    """
    if (keys := _keys(values, descending=True)) is None:
        return np.argsort(-values, kind="stable")
    keys &= _INDEX
    return keys.view(np.int64)


def top(values: np.ndarray, k: int) -> np.ndarray:
    """Mark the k largest values; of equal values those with the lower index.

    Args:
        values: Vector without NaN.
        k: How many to mark, between 0 and the length.

    Returns:
        Boolean vector with exactly ``k`` true entries.
    """
    chosen = np.zeros(len(values), dtype=bool)
    if k > 0:
        threshold = np.partition(values, len(values) - k)[len(values) - k]
        np.greater(values, threshold, out=chosen)
        ties = np.flatnonzero(values == threshold)
        chosen[ties[: k - int(chosen.sum())]] = True
    return chosen


def doubled_ranks(values: np.ndarray) -> np.ndarray:
    """Twice the ascending ranks from 1, ties sharing their mean rank (so all are integers).

    Args:
        values: Non-negative vector without NaN.

    Returns:
        Unsigned integers, as short as the length allows.
    """
    n = len(values)
    kind = np.uint32 if 2 * n < 2**32 else np.uint64
    if (keys := _keys(values, descending=False)) is None:
        places = np.argsort(values, kind="stable")
        ordered = values[places]
    else:
        ordered = (keys >> _INDEX_BITS).astype(np.uint32)
        keys &= _INDEX
        places = keys.view(np.int64)
    ranks = np.arange(2, 2 * n + 2, 2, dtype=kind)
    tied = ordered[1:] == ordered[:-1]
    if tied.any():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], tied, [False]]).view(np.int8)))
        first, last = edges[0::2], edges[1::2]
        counts = last - first + 1
        skipped = first - (np.cumsum(counts) - counts)
        members = np.repeat(skipped, counts) + np.arange(counts.sum())
        ranks[members] = np.repeat(first + last + 2, counts)
    scattered = np.empty(n, dtype=kind)
    scattered[places] = ranks
    return scattered


def _keys(values: np.ndarray, *, descending: bool) -> np.ndarray | None:
    # Integers made of value and index, sorted; None where these don't fit into one. The bits
    # of non-negative floats order like the floats, and sorting plain integers is several
    # times faster than an argsort and breaks ties by index.
    if values.dtype != np.float32 or len(values) >= 2**32 or np.signbit(values).any():
        return None
    bits = values.view(np.uint32)
    keys = (~bits if descending else bits).astype(np.uint64)
    keys <<= _INDEX_BITS
    keys |= np.arange(len(values), dtype=np.uint64)
    keys.sort()
    return keys


def require_diagonal(fisher: Fisher, wanted: str) -> None:
    """Make sure that single parameters can be told apart.

    Args:
        fisher: Any Fisher.
        wanted: What needs them, for the message.

    Raises:
        ParameterError: If the Fisher only has sums over groups.
    """
    if isinstance(fisher, GroupedFisher):
        raise ParameterError(
            f"{wanted} needs one number per parameter, but a grouped Fisher has one per output "
            'row. Estimate with structure="diagonal".'
        )


def weights(fisher: Fisher, model: nn.Module | None, wanted: str) -> dict[str, Tensor]:
    """The model's weights under the Fisher's parameter names.

    Args:
        fisher: Whose parameters are wanted.
        model: The model that the Fisher was estimated on.
        wanted: What needs them, for the message.

    Returns:
        Parameter name to detached tensor on the CPU.

    Raises:
        ParameterError: If there is no model, or if it lacks one of the parameters or has it
            in another shape.
        NonFiniteError: If a weight is NaN or infinite.
    """
    if model is None:
        raise ParameterError(f"{wanted} needs the weights: pass model=, the estimated model.")
    present = dict(model.named_parameters(remove_duplicate=False))
    wrong = [
        f"{name!r} ({_shape(present.get(name))}, expected {shape})"
        for name, shape in fisher.identity.parameters.items()
        if name not in present or tuple(present[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ParameterError(
            f"model does not have the Fisher's parameters: {', '.join(wrong[:_SHOWN])}{more}. "
            "Pass the model that this Fisher was estimated on."
        )
    found = {name: present[name].detach().cpu() for name in fisher.identity.parameters}
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name!r} has weights that are NaN or infinite.")
    return found


def own_weights(fisher: Fisher, model: nn.Module | None, wanted: str) -> dict[str, Tensor]:
    """:func:`weights`, at which the Fisher was estimated.

    Args:
        fisher: Whose parameters are wanted. One that was followed along a run belongs to no
            single model, and goes with any of the same parameters.
        model: The model that the Fisher was estimated on.
        wanted: What needs them, for the message.

    Returns:
        Parameter name to detached tensor on the CPU.

    Raises:
        IdentityError: If the model has other weights by now, or had them all along.
    """
    found = weights(fisher, model, wanted)
    assert model is not None
    held = fisher.identity.model_fingerprint
    if not of_run(fisher) and (mine := model_fingerprint(model)) != held:
        raise IdentityError(
            f"{wanted}: the Fisher was estimated at other weights: model_fingerprint is {held!r}, "
            f"that of model= {mine!r}. Pass the model as it was then, or estimate at these weights."
        )
    return found


def _shape(parameter: Tensor | None) -> str:
    return "absent" if parameter is None else f"shape {tuple(parameter.shape)}"
