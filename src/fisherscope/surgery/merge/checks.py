"""Whether models, and Fishers with them, can be merged at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fisherscope.arguments import check_list, check_number
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.engine.named import first_names
from fisherscope.engine.selection import check_finite
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import Fisher
from fisherscope.structures.diagonal import COMPARABLE
from fisherscope.structures.layout import check_same

_SHOWN = 5
# What changes a model's function without changing the shape of any parameter.
_FUNCTION = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_act")


def check_models(models: Sequence[nn.Module], base: nn.Module | None, *, buffers: bool) -> None:
    """Make sure that all models are of one architecture.

    Args:
        models: The models.
        base: One more, or ``None``.
        buffers: Whether unlike buffers are a reason to refuse.

    Raises:
        ParameterError: If something is no module, or there is nothing to merge.
        IdentityError: If two models differ in class, names, ties, shapes, types or buffers.
    """
    labelled = {f"models[{i}]": model for i, model in enumerate(models)}
    if base is not None:
        labelled["base"] = base
    if not models or len(labelled) < 2:
        raise ParameterError(
            f"models holds {len(models)}: pass at least two, or one and base= for the methods "
            "that take it."
        )
    for label, model in labelled.items():
        if not isinstance(model, nn.Module):
            raise ParameterError(f"{label} is a {type(model).__name__}, not a torch module.")
        check_finite(model)
    first = models[0]
    for label, model in labelled.items():
        if differing := _differing(first, model, buffers):
            more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise IdentityError(
                f"models[0] and {label} can't be merged: {'; '.join(differing[:_SHOWN])}{more}."
            )


def _differing(one: nn.Module, two: nn.Module, buffers: bool) -> list[str]:
    if type(one) is not type(two):
        return [f"they are a {type(one).__name__} and a {type(two).__name__}"]
    found = []
    for field in _FUNCTION:
        a, b = (getattr(getattr(m, "config", None), field, None) for m in (one, two))
        if a != b:
            found.append(f"config.{field} is {a!r} and {b!r}")
    found += _unlike(_described(one), _described(two))
    if not found:
        ties = (first_names(m, dict(m.named_parameters())) for m in (one, two))
        found += [f"parameter {line}, as what it is tied to" for line in _unlike(*ties)]
    if not found:
        found += [
            f"{name!r} holds integers that differ (quantised weights have no mean: load the model "
            "unquantised)"
            for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True)
            if not a.is_floating_point() and not _same(a, b)
        ]
    if not found and buffers:
        found += _unlike_buffers(one, two)
    return found


def _described(model: nn.Module) -> dict[str, str]:
    # Buffers may be there or not (a cache of attention masks), as long as none differs.
    return {
        name: f"{str(p.dtype).removeprefix('torch.')} {tuple(p.shape)}"
        for name, p in model.named_parameters(remove_duplicate=False)
    }


def _unlike(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [
        f"{name!r} is {mine.get(name, 'absent')} and {theirs.get(name, 'absent')}"
        for name in {**mine, **theirs}
        if mine.get(name) != theirs.get(name)
    ]


def _unlike_buffers(one: nn.Module, two: nn.Module) -> list[str]:
    mine, theirs = dict(one.named_buffers()), dict(two.named_buffers())
    return [
        f"buffer {name!r} differs (running statistics can't be averaged with weights: estimate "
        "them anew after the merge, with buffers='first')"
        for name in {**mine, **theirs}
        if not _same(mine.get(name), theirs.get(name))
    ]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


def check_fishers(models: Sequence[nn.Module], fishers: Sequence[Fisher]) -> None:
    """Make sure that each Fisher is its model's, and that they are of one kind.

    Args:
        models: The models.
        fishers: As many Fishers.

    Raises:
        ParameterError: If there are more or fewer Fishers than models, or something is no Fisher.
        IdentityError: If a Fisher is another model's, or two are of different things.
    """
    if len(fishers) != len(models):
        raise ParameterError(f"there are {len(models)} models, but {len(fishers)} fishers.")
    for number, fisher in enumerate(fishers):
        if not isinstance(fisher, Fisher):
            raise ParameterError(f"fishers[{number}] is a {type(fisher).__name__}, not a Fisher.")
    prints = [model_fingerprint(model) for model in models]
    for number, fisher in enumerate(fishers):
        if (held := fisher.identity.model_fingerprint) != prints[number]:
            near = f" (it is that of models[{prints.index(held)}])" if held in prints else ""
            raise IdentityError(
                f"fishers[{number}] was not estimated on models[{number}]{near}: its model has the "
                f"fingerprint {held}, this one {prints[number]}. Pass the Fishers in the models' "
                "order, each estimated on the very weights that are merged."
            )
    for fisher in fishers[1:]:
        fishers[0].identity.check(fisher.identity, ignore=(*COMPARABLE, "model_fingerprint"))
        check_same(fishers[0].layout, fisher.layout, "merged")


def checked_weights(
    weights: Sequence[float] | None, count: int, *, signed: bool = False
) -> list[float]:
    """The models' weights.

    Args:
        weights: One number per model, or ``None`` for ones.
        count: Number of models.
        signed: Whether they may be negative, and all of them zero. Default: ``False``.

    Returns:
        The weights as floats.

    Raises:
        ParameterError: If there are more or fewer, or one is negative or not finite, or all are
            zero.
    """
    if weights is not None:
        check_list("weights", weights, "one number per model")
        for number, weight in enumerate(weights):
            check_number(f"weights[{number}]", weight)
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        raise ParameterError(f"there are {count} models, but {len(values)} weights.")
    if not signed and (min(values) < 0 or not any(values)):
        raise ParameterError(f"weights={values} must be at least 0 and not all 0.")
    return values
