"""Which parameters are asked for, under which name, and whether they are usable."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

from fisherscope.engine.quantised import usable
from fisherscope.errors import NonFiniteError, ParameterError


def select(
    model: nn.Module, patterns: str | Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """The requested parameters, tied tensors once under their first name.

    Args:
        model: Any module.
        patterns: Glob pattern or patterns over whole parameter names, such as
            ``"model.layers.*.mlp.*"``; any name of a tied tensor selects it. Default:
            ``None``, which takes all floating-point parameters. The quantised weight of a
            linear layer has to be asked for.

    Returns:
        Name to parameter in the model's order; for a quantised weight a stand-in of the
        shape [out, in] that it has unquantised.

    Raises:
        ParameterError: If the model has no parameters, or a pattern matches none of them.
    """
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = dict(model.named_parameters())
    if not everything:
        raise ParameterError(f"{type(model).__name__} has no parameters at all")
    if patterns is None:
        return {n: p for n, p in everything.items() if p.is_floating_point()}
    wanted: set[str] = set()
    aliases = list(model.named_parameters(remove_duplicate=False))
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        found = {canonical[id(p)] for n, p in aliases if fnmatch.fnmatchcase(n, pattern)}
        if not found:
            names = [name for name, _ in aliases]
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ParameterError(
                f"no parameter matches {pattern!r}; names look like {', '.join(near)} "
                "(patterns are globs over the whole name, e.g. '*.mlp.*')"
            )
        wanted |= found
    return usable(model, {n: p for n, p in everything.items() if n in wanted})


def check_finite(model: nn.Module) -> None:
    """Refuse a model with broken weights before any work.

    Args:
        model: Any module.

    Raises:
        NonFiniteError: If a parameter holds NaN or infinite values; every one is named.
    """
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and not bool(torch.isfinite(parameter.detach().sum()))
        and not bool(torch.isfinite(parameter.detach()).all())
    ]
    if broken:
        shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
        raise NonFiniteError(
            f"the model's weights are not finite (NaN or inf) in {shown}; reload or repair the "
            "checkpoint"
        )
