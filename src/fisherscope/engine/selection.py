"""Which parameters are asked for, under which name, and whether they are usable."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

import torch
from torch import nn

from fisherscope.engine.away import is_away, reachable, rest, state
from fisherscope.engine.offloaded import tied
from fisherscope.engine.quantised import usable
from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.naming import Layers, Selection, Selector, address, described, selectors, stacks


def select(model: nn.Module, selection: Selection = None) -> dict[str, nn.Parameter]:
    """The requested parameters, tied tensors once under their first name.

    Args:
        model: Any module.
        selection: One or several of the following, whose parameters are united. Any name of a
            tied tensor selects it.

            - a glob over whole parameter names, such as ``"model.layers.*.mlp.*"``;
            - a compiled regular expression, found anywhere in the name (``re.search``), or
              ``"re:…"`` in text;
            - :func:`fisherscope.layers`, or ``"layers[3:7]"`` in text;
            - a predicate ``(name, parameter) -> bool``.

            Default: ``None``, which takes all floating-point parameters; the quantised weight
            of a linear layer has to be asked for.

    Returns:
        Name to parameter in the model's order; for a quantised weight a stand-in of the
        shape [out, in] that it has unquantised, for one that is sharded or offloaded a
        displacement of its whole shape.

    Raises:
        ParameterError: If the model has no parameters, or a selector is of no known kind or
            takes none of them.
    """
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    further = tied(model)
    everything = {n: p for n, p in model.named_parameters() if n not in further}
    if not everything:
        raise ParameterError(f"{type(model).__name__} has no parameters at all")
    if selection is None:
        floating = {n: p for n, p in everything.items() if p.is_floating_point()}
        return reachable(model, floating, further)
    wanted: set[str] = set()
    aliases = dict(model.named_parameters(remove_duplicate=False))
    for selector in selectors(selection):
        found = {
            further.get(name) or canonical[id(aliases[name])] for name in _taken(selector, aliases)
        }
        if not found:
            raise ParameterError(
                f"no parameter matches {described(selector)}{_hint(selector, aliases)}"
            )
        wanted |= found
    taken = {n: p for n, p in everything.items() if n in wanted}
    return reachable(model, usable(model, taken), further)


def _taken(selector: Selector, aliases: dict[str, nn.Parameter]) -> list[str]:
    if isinstance(selector, str):
        return [name for name in aliases if fnmatch.fnmatchcase(name, selector)]
    if isinstance(selector, re.Pattern):
        return [name for name in aliases if selector.search(name)]
    if isinstance(selector, Layers):
        counts = _layer_counts(aliases)
        return [
            name
            for name, (stack, layer) in _layers(aliases).items()
            if selector.holds(layer, counts[stack])
        ]
    return [name for name, parameter in aliases.items() if selector(name, parameter)]


def _layers(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    # Stack and number of the layer, for every parameter that is in one.
    numbers = {name: (stack, address(name)[0]) for name, stack in stacks(names).items()}
    return {name: (stack, n) for name, (stack, n) in numbers.items() if n is not None}


def _layer_counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stack, number in _layers(names).values():
        counts[stack] = max(counts.get(stack, 0), number + 1)
    return counts


def _hint(selector: Selector, aliases: dict[str, nn.Parameter]) -> str:
    names = list(aliases)
    if isinstance(selector, Layers):
        counts = _layer_counts(names)
        if not counts:
            return f"; no name of this model has a layer's number: {', '.join(names[:3])}"
        spans = [f"{stack} 0 to {n - 1}".strip() for stack, n in counts.items()]
        return f"; the layers of this model are {', '.join(spans)}"
    asked = selector if isinstance(selector, str) else getattr(selector, "pattern", "")
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.3) or names[:3]
    how = " (a glob is about the whole name, e.g. '*.mlp.*')" * isinstance(selector, str)
    return f"; names look like {', '.join(near)}{how}"


def check_finite(model: nn.Module) -> None:
    """Refuse a model with broken weights before any work.

    Args:
        model: Any module.

    Raises:
        NonFiniteError: If a parameter holds NaN or infinite values; every one is named.
    """
    rest(model)
    parameters = dict(model.named_parameters())
    whole = state(model) if any(map(is_away, parameters.values())) else {}
    broken = []
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            continue
        held = whole[name] if is_away(parameter) else parameter.detach()
        if not bool(torch.isfinite(held.sum())) and not bool(torch.isfinite(held).all()):
            broken.append(name)
    if broken:
        shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
        raise NonFiniteError(
            f"the model's weights are not finite (NaN or inf) in {shown}; reload or repair the "
            "checkpoint"
        )
