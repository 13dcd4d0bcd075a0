"""Masks that remove the least important parameters, alone or together."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.analysis.access import top, weights
from fisherscope.analysis.masks.couplings import Coupling, head_couplings
from fisherscope.analysis.masks.linears import linear_layers
from fisherscope.analysis.masks.neurons import neuron_couplings
from fisherscope.analysis.masks.scores import Method, additive, uniforms
from fisherscope.arguments import check_choice, check_number, check_whole
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.naming import address
from fisherscope.structures import Fisher

Scope = Literal["global", "tensor"]
Structure = Literal["weight", "head", "neuron", "2:4"]

_SHOWN = 5
_COUPLINGS = {"head": head_couplings, "neuron": neuron_couplings}


@needs_whole
def masks(
    fisher: Fisher,
    sparsity: float,
    *,
    model: nn.Module | None = None,
    method: Method = "fisher",
    scope: Scope = "global",
    structure: Structure = "weight",
    protect: Literal["default"] | str | Sequence[str] | None = "default",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Masks that remove the least important parameters; true means keep.

    Exactly ``round(sparsity * n)`` of the ``n`` parameters (heads, hidden units) that are not
    protected are removed, of each part if ``scope="tensor"``. Of equal scores the ones with
    the lower index are kept. Nothing is changed: the masks are returned.

    The structures:

    ``"weight"``
        Single parameters.
    ``"head"``
        Attention heads, with all that only they use: their rows of the query, key and value
        projections with the biases, and their columns of the output projection (its bias
        belongs to no head). A key-value head that several query heads read goes only with all
        of them, so the unit is a key-value head with its query heads: a single head without
        such sharing, a whole attention module if all its heads share one.
    ``"neuron"``
        Hidden units of MLPs: their rows of the projections up (and gate) with the biases, and
        their columns of the projection down. What is in no MLP is left whole.
    ``"2:4"``
        Of each four consecutive inputs of an output of a linear layer the two best stay.

    Heads and hidden units are scored by the sum over all their slices, for ``"obd"`` the
    expected cost of their removal in nats; cross terms between parameters are not in it.

    Args:
        fisher: Any Fisher but a grouped one; of others than diagonals the diagonal is read. For
            ``"magnitude"`` and ``"random"`` it only says which parameters there are.
        sparsity: Fraction to remove, at least 0 and below 1; for ``"2:4"`` it must be 0.5.
        model: The model that was estimated; needed for ``"obd"`` and ``"magnitude"``, and for
            all structures but ``"weight"``. Default: ``None``.
        method: What a parameter is scored by: ``"fisher"`` (:math:`F`), ``"obd"``
            (:math:`\tfrac12 F \theta^2`, the expected cost of its removal), ``"magnitude"``
            (:math:`|\theta|`, of several the L2 norm), or ``"random"``. Default: ``"fisher"``.
        scope: ``"global"`` (one threshold for all) or ``"tensor"`` (the same sparsity in each
            tensor, of heads and hidden units in each module). Default: ``"global"``.
        structure: ``"weight"``, ``"head"``, ``"neuron"`` or ``"2:4"``. Default: ``"weight"``.
        protect: Which tensors to leave whole: ``"default"`` (embeddings, norms, the output
            head, and all vectors and scalars, so every bias), glob pattern or patterns over
            parameter names (one of them may be ``"default"``), or ``None``. A module of heads
            or hidden units is protected as soon as one of its tensors is; there biases go with
            their matrix, whatever ``"default"`` says of vectors. Default: ``"default"``.
        seed: Seed of ``"random"``, whose scores depend on seed and name of the parameter or
            module alone. Default: ``0``.

    Returns:
        Parameter name to boolean CPU tensor of the parameter's shape. What is protected, or
        has no part in the structure, is not in it.

    Raises:
        ParameterError: If an option is unknown or out of range, if a pattern matches no
            parameter, if everything is protected, if ``model`` is missing or has other
            parameters (for ``"obd"`` other weights are an ``IdentityError``, unless the Fisher was
            followed along a run), if a grouped Fisher is to score single parameters, if heads or
            hidden units can't be told apart or some of their slices are not among the Fisher's
            parameters, or if a tensor has no fours of inputs.

    Source:
        LeCun, Denker, Solla: Optimal Brain Damage (1989), equation 5, for ``"obd"``. Mishra et
        al.: Accelerating sparse deep neural networks (2021) for two of four.
    """  # noqa: DOC502 (partly raised by callees)
    for option, value, known in (
        ("method", method, get_args(Method)),
        ("scope", scope, get_args(Scope)),
        ("structure", structure, get_args(Structure)),
    ):
        check_choice(option, value, known)
    check_number("sparsity", sparsity, low=0, below=1)
    check_whole("seed", seed, low=0)
    if structure == "2:4" and sparsity != 0.5:
        raise ParameterError(f'sparsity={sparsity!r}: structure="2:4" removes half, so pass 0.5.')
    shapes = fisher.identity.parameters
    guarded = _guarded(shapes, protect, vectors=structure in {"weight", "2:4"})
    open_ones = [name for name in shapes if name not in guarded]
    if not open_ones:
        raise ParameterError(_all_protected(f"all {len(shapes)} tensors are"))
    if structure == "weight":
        scores = _single(fisher, model, method, seed)
        return _weights({name: scores(name) for name in open_ones}, sparsity, scope)
    if model is None:
        raise ParameterError(f"structure={structure!r} needs the modules: pass model=.")
    weights(fisher, model, "masks()")
    if structure == "2:4":
        return _two_of_four(model, shapes, open_ones, _single(fisher, model, method, seed))
    couplings = _COUPLINGS[structure](model, shapes, guarded)
    if not couplings:
        raise ParameterError(_all_protected(f"every {structure} is"))
    return _units(
        couplings, _scored(couplings, fisher, model, method, seed), shapes, sparsity, scope
    )


def _guarded(
    shapes: Mapping[str, tuple[int, ...]], protect: str | Sequence[str] | None, *, vectors: bool
) -> set[str]:
    patterns = [protect] if isinstance(protect, str) else list(protect or ())
    guarded: set[str] = set()
    for pattern in patterns:
        if pattern == "default":
            guarded |= {
                name
                for name, shape in shapes.items()
                if (vectors and len(shape) < 2) or address(name)[1] in {"embed", "norm", "head"}
            }
        elif matched := fnmatch.filter(shapes, pattern):
            guarded.update(matched)
        else:
            raise ParameterError(
                f"protect={pattern!r} matches none of the {len(shapes)} parameters; their names "
                f"begin with {', '.join(map(repr, list(shapes)[:_SHOWN]))}."
            )
    return guarded


def _all_protected(what: str) -> str:
    return f"{what} protected, so there is nothing to mask. Pass protect=None or fewer patterns."


def _single(
    fisher: Fisher, model: nn.Module | None, method: Method, seed: int
) -> Callable[[str], Tensor]:
    # Scores of single parameters, in their shapes.
    if method != "random":
        return additive(fisher, model, method)
    shapes = fisher.identity.parameters
    return lambda name: uniforms(seed, name, math.prod(shapes[name])).reshape(shapes[name])


def _scored(
    couplings: list[Coupling], fisher: Fisher, model: nn.Module, method: Method, seed: int
) -> list[Tensor]:
    # Scores of the units of each coupling.
    if method == "random":
        return [uniforms(seed, coupling.module, coupling.units) for coupling in couplings]
    scores = additive(fisher, model, method)
    found = []
    for coupling in couplings:
        sums = torch.zeros(coupling.units, dtype=torch.float64)
        for share in coupling.shares:
            share.add_to(sums, scores(share.tensor))
        found.append(sums.sqrt() if method == "magnitude" else sums)
    return found


def _weights(scores: dict[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    kept = _keep([score.reshape(-1).numpy() for score in scores.values()], sparsity, scope)
    return {
        name: torch.from_numpy(keep.copy()).reshape(scores[name].shape)
        for name, keep in zip(scores, kept, strict=True)
    }


def _units(
    couplings: list[Coupling],
    scores: list[Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    sparsity: float,
    scope: Scope,
) -> dict[str, Tensor]:
    kept = _keep([score.numpy() for score in scores], sparsity, scope)
    found: dict[str, Tensor] = {}
    for coupling, keep in zip(couplings, kept, strict=True):
        for share in coupling.shares:
            # One tensor can be the way out of an MLP and the way into the next.
            mask = found.setdefault(
                share.tensor, torch.ones(shapes[share.tensor], dtype=torch.bool)
            )
            mask &= share.mask(torch.from_numpy(keep.copy()), shapes[share.tensor])
    return {name: found[name] for name in shapes if name in found}


def _keep(scores: list[np.ndarray], sparsity: float, scope: Scope) -> list[np.ndarray]:
    if scope == "tensor":
        return [top(part, len(part) - round(sparsity * len(part))) for part in scores]
    everything = np.concatenate(scores)
    chosen = top(everything, len(everything) - round(sparsity * len(everything)))
    return np.split(chosen, np.cumsum([len(part) for part in scores])[:-1])


def _two_of_four(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    names: list[str],
    scores: Callable[[str], Tensor],
) -> dict[str, Tensor]:
    layers = {layer.weight: layer for layer in linear_layers(model).values()}
    matrices = [name for name in names if len(shapes[name]) > 1]
    for name in matrices:
        if name not in layers or layers[name].inputs % 4:
            problem = "is not the weight of a linear layer"
            if name in layers:
                problem = f"has {layers[name].inputs} inputs, no multiple of four"
            raise ParameterError(
                f'structure="2:4": {name!r} of shape {tuple(shapes[name])} {problem}. Protect it: '
                f"protect=['default', {name!r}]."
            )
    if not matrices:
        raise ParameterError(_all_protected("all weights of linear layers are"))
    found = {}
    for name in matrices:
        matrix = scores(name).T if layers[name].transposed else scores(name)
        fours = matrix.reshape(len(matrix), -1, 4)
        best = fours.sort(dim=-1, descending=True, stable=True).indices[..., :2]
        mask = torch.zeros(fours.shape, dtype=torch.bool).scatter_(-1, best, True)
        mask = mask.reshape(matrix.shape)
        found[name] = mask.T.contiguous() if layers[name].transposed else mask
    return found
