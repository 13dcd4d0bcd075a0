"""The hidden units of a model's MLPs, found by how its modules are built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import nn

from fisherscope.analysis.masks.couplings import Coupling, Share, whole
from fisherscope.analysis.masks.linears import LinearLayer, linear_layers
from fisherscope.errors import ParameterError

# Projections into the hidden units, whose outputs are multiplied if there are two, and the
# projection out of them; names below the module that holds them.
_FORMS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("ffn",), "ffn_output"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("Wi",), "Wo"),
    (("w1", "w3"), "w2"),
)
# Gate and value, one after the other in one projection.
_FUSED = {"gate_up_proj", "Wi"}
_MIXING = {"Softmax", "Softmin", "LogSoftmax", "Softmax2d", "GLU", "MultiheadAttention"}
_SHOWN = 8


def neuron_couplings(
    model: nn.Module, names: Collection[str], guarded: Collection[str] = ()
) -> list[Coupling]:
    """The hidden units of MLPs.

    A unit is its row of every projection into the MLP, biases included, and its column of the
    projection out of it. An MLP is a module with projections of known names, or two linear
    layers of an ``nn.Sequential`` with nothing but elementwise functions between them.

    Args:
        model: The model.
        names: The parameters that there are scores of.
        guarded: Parameters that stay whole. Default: none.

    Returns:
        One coupling per MLP that has a parameter among the names and none that is guarded.

    Raises:
        ParameterError: If there is no MLP, or one is not understood; the message says what.
    """
    if experts := [n for n in names if "expert" in n and n not in guarded and _stacked(model, n)]:
        raise ParameterError(
            f'structure="neuron": {experts[0]!r} holds the hidden units of several experts in one '
            "tensor, which is not known to neuron masks. Protect it: protect=['default', "
            "'*experts*']."
        )
    layers = linear_layers(model)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shared = {name for name, p in model.named_parameters() if uses[id(p)] > 1}
    wanted, whole_ones = set(names), set(guarded)
    found, skipped = [], 0
    for module, ups, down in _mlps(model, layers):
        coupled = {name for layer in (*(u for _, u in ups), down) for name in layer.names}
        if not coupled & wanted or coupled & whole_ones:
            skipped += bool(coupled & whole_ones)
            continue
        if coupled & shared:
            raise ParameterError(
                f'structure="neuron": {min(coupled & shared)!r} of the MLP {module!r} is used '
                "in several places, so none of its units can be removed in one of them alone. "
                f"Protect it: protect=['default', {min(coupled)!r}]."
            )
        found.append(_coupling(model, module, ups, down))
    if not found and not skipped:
        raise ParameterError(_not_understood(layers, wanted))
    return whole(found, wanted, "neuron")


def _mlps(
    model: nn.Module, layers: dict[str, LinearLayer]
) -> Iterator[tuple[str, list[tuple[str, LinearLayer]], LinearLayer]]:
    # Module, projections into the hidden units by name, and the projection out of them.
    for path, module in model.named_modules(remove_duplicate=False):
        root = f"{path}." if path else ""
        for ups, down in _FORMS:
            if all(root + name in layers for name in (*ups, down)):
                yield path, [(name, layers[root + name]) for name in ups], layers[root + down]
                break
        if isinstance(module, nn.Sequential):
            before = None
            for name, child in module._modules.items():
                layer = layers.get(root + name)
                if layer is not None and before is not None:
                    yield root + before[0], [before], layer
                if layer is not None or not (child is not None and _elementwise(child)):
                    before = None if layer is None else (name, layer)


def _stacked(model: nn.Module, name: str) -> bool:
    return model.get_parameter(name).ndim > 2


def _elementwise(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.startswith(("torch.nn.modules.activation", "transformers.activations")):
        return kind.__name__ not in _MIXING
    return isinstance(module, nn.Dropout | nn.Identity)


def _coupling(
    model: nn.Module, path: str, ups: list[tuple[str, LinearLayer]], down: LinearLayer
) -> Coupling:
    units = down.inputs
    shares = [Share(down.weight, 0 if down.transposed else 1, torch.arange(units))]
    for name, up in ups:
        if up.outputs != units * (2 if name in _FUSED else 1):
            raise ParameterError(
                f'structure="neuron": {up.weight!r} has {up.outputs} outputs and {down.weight!r} '
                f"{units} inputs, so how the hidden units of {path!r} are laid out is not known. "
                f"Protect it: protect=['default', {up.weight!r}]."
            )
        owner = torch.arange(up.outputs) % units
        shares.append(Share(up.weight, 1 if up.transposed else 0, owner))
        if up.bias:
            shares.append(Share(up.bias, 0, owner))
    for name, norm in model.get_submodule(path).named_children():
        scale = getattr(norm, "weight", None)
        normalises = "Norm" in type(norm).__name__ and getattr(scale, "shape", None) == (units,)
        if normalises and units != down.outputs:
            raise ParameterError(
                f'structure="neuron": {name!r} of {path!r} normalises the hidden units together, '
                "so none of them can be removed without moving the others. Protect it: "
                f"protect=['default', {down.weight!r}]."
            )
    return Coupling(path, units, tuple(shares))


def _not_understood(layers: dict[str, LinearLayer], wanted: set[str]) -> str:
    mine = [path for path, layer in layers.items() if layer.weight in wanted]
    more = f" and {len(mine) - _SHOWN} more" if len(mine) > _SHOWN else ""
    forms = ", ".join(f"{' * '.join(ups)} -> {down}" for ups, down in _FORMS)
    return (
        'structure="neuron" found no MLP among the parameters. Its linear layers are '
        f"{', '.join(map(repr, mine[:_SHOWN])) or 'none'}{more}; known are {forms}, and linear "
        "layers of an nn.Sequential with elementwise functions between them. "
        'Use structure="weight" instead.'
    )
