"""Where a parameter sits, read from its name alone: layer number and module."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The number after one of these is the layer; more specific patterns come first.
_LAYER = [
    re.compile(r"(?:^|\.)(albert_layer_groups)\.(\d+)\.albert_layers\.0(?=\.)"),
    re.compile(r"(?:^|\.)(albert_layer_groups)\.(\d+)\.albert_layers(?=\.)"),
    re.compile(r"(?:^|\.)(block)\.(\d+)\.layer\.\d+(?=\.)"),
    re.compile(r"(?:^|\.)(layers|layer|h|blocks|block|stages)\.(\d+)(?=\.)"),
    re.compile(r"(?:^|\.)(layer)(\d+)(?=\.)"),
]
# A list of modules under any other name counts as layers when its members have submodules.
_NUMBERED = re.compile(r"(?:^|\.)([A-Za-z_]\w*)\.(\d+)(?=\.\w+\.\w)")
_VALUES = {"weight", "bias", "gamma", "beta"}
_LISTS = {"layers", "layer", "blocks", "block"}
_NORM = re.compile(r"norm(?!.*proj)|^(ln|bn)(_?\w{1,4})?$", re.IGNORECASE)
_EMBED = re.compile(r"embed|^(wte|wpe|shared|cls_token|mask_token)$")
_HEAD = re.compile(
    r"heads?$|^(embed_out|score|cls|predictions|output_layer|output_projection|proj_out|"
    r"qa_outputs|vocab_\w+)$|classifier"
)
# Names that say nothing without their parents.
_GENERIC = re.compile(
    r"^(dense|c_proj|proj|projection|fc|linear|lin|out|output|conv|convolution|W[io]|[a-z]|\d+)$"
)
_CROSS = re.compile(r"^(encoder_attn|EncDecAttention|crossattention|cross_attn)$")
_LORA = re.compile(r"^lora_(A|B|embedding_A|embedding_B|magnitude_vector)$")


def address(name: str) -> tuple[int | None, str]:
    """Layer number and module of a parameter, from its name alone.

    Weight and bias of a module share its address. Every normalisation is called
    ``"norm"``, whatever stands outside the layers is ``"embed"`` or ``"head"`` where the
    name says so. A module name that is not telling keeps its parents
    (``"mlp.c_proj"``, ``"attention.output.dense"``). The experts of a mixture share one
    address per projection. In a ResNet the layer is the stage, and the number of the block
    begins the module (``"1.conv1"``).

    Args:
        name: A parameter name as in ``model.named_parameters()``.

    Returns:
        Layer number (``None`` outside the layers) and module.

    Example:
        >>> address("model.layers.3.self_attn.q_proj.weight")
        (3, 'q_proj')
        >>> address("transformer.h.0.mlp.c_proj.bias")
        (0, 'mlp.c_proj')
        >>> address("transformer.wte.weight")
        (None, 'embed')
    """
    layer, _, rest = _split(name)
    path, adapter = _path(rest)
    return layer, _module(path, inside=layer is not None) + adapter


def addresses(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """Addresses of all parameters of one model, with several stacks of layers told apart.

    With one stack of layers these are the values of :func:`address`. With several (an
    encoder and a decoder, a vision and a language model) modules begin with the name of
    their stack, such as ``"decoder.q_proj"``: layer 0 of one is not layer 0 of the other.
    Where two modules of a layer would share a name they keep their parents.

    Args:
        names: Parameter names of one model.

    Returns:
        Name to layer number and module, in the order given.
    """
    labels = stacks(names)
    short = {name: address(name) for name in labels}
    owners: dict[tuple[str, int | None, str], set[str]] = {}
    for name, label in labels.items():
        owners.setdefault((label, *short[name]), set()).add(_owner(name))
    found = {}
    for name, label in labels.items():
        layer, module = short[name]
        merged = module in {"norm", "embed", "head"} or "expert" in module
        if not merged and len(owners[label, layer, module]) > 1:
            module = _owner(name)
        found[name] = layer, f"{label}.{module}" if label else module
    return found


def stacks(names: Iterable[str]) -> dict[str, str]:
    """The stack of layers that each parameter of one model belongs to.

    Args:
        names: Parameter names of one model.

    Returns:
        Name to the word that tells its stack from the others; ``""`` for all in a model
        with a single stack, and for what lies outside the stacks.
    """
    names = list(names)
    prefixes = sorted({_split(name)[1] for name in names if _split(name)[0] is not None})
    if len(prefixes) < 2:
        return dict.fromkeys(names, "")
    paths = [prefix.split(".") for prefix in prefixes]
    common = 0
    while all(len(p) > common + 1 and p[common] == paths[0][common] for p in paths):
        common += 1
    roots = {".".join(path[: common + 1]): path[common] for path in paths}
    if len(roots) < len(paths):
        roots = {".".join(path): ".".join(path[common:]) for path in paths}
    return {
        name: next((word for root, word in roots.items() if name.startswith(root + ".")), "")
        for name in names
    }


def by_layer(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """The layer of each parameter of one model, with a label.

    Args:
        names: Parameter names of one model.

    Returns:
        Name to layer number and its label (``"3"``, with several stacks ``"decoder.3"``);
        outside the layers to ``None`` and the module (``"embed"``, ``"norm"``, ``"head"``, ...).
    """
    places, stack = addresses(names), stacks(names)
    return {
        name: (layer, module)
        if layer is None
        else (layer, f"{stack[name]}.{layer}" if stack[name] else str(layer))
        for name, (layer, module) in places.items()
    }


def _split(name: str) -> tuple[int | None, str, str]:
    # Layer number, the text before it, and the text after it.
    for pattern in (*_LAYER, _NUMBERED):
        if (match := pattern.search(name)) is None:
            continue
        if pattern is _NUMBERED and _HEAD.search(match[1]):
            continue
        rest = name[match.end() + 1 :]
        # A layer that is itself the module (layers.0.weight) is called after its list.
        rest = f"{match[1]}.{rest}" if rest in _VALUES else rest
        return int(match[2]), name[: match.start(2)].rstrip("."), rest
    return None, "", name


def _owner(name: str) -> str:
    path, adapter = _path(_split(name)[2])
    return ".".join(path) + adapter


def _path(rest: str) -> tuple[list[str], str]:
    # Components of the owning module, and the suffix that names an adapter's factor.
    parts = [part for part in rest.split(".") if part != "base_layer"] or [rest]
    for at, part in enumerate(parts):
        if at and _LORA.match(part):
            extra = [p for p in parts[at + 1 :] if p not in _VALUES and p != "default"]
            return parts[:at], "." + ".".join([part, *extra])
    if parts[-1] in _VALUES and len(parts) > 1:
        parts.pop()
    return parts, ""


def _module(path: list[str], *, inside: bool) -> str:
    last = path[-1]
    if _NORM.search(last):
        return "norm"
    if not inside:
        if any(_HEAD.search(part) for part in path) or path in (["fc"], ["decoder"]):
            return "head"
        if any(_EMBED.search(part) for part in path):
            return "embed"
        if "pooler" in path:
            return "pooler"
    for at, part in enumerate(path):
        if "expert" in part:
            return ".".join(p for p in path[at:] if not p.isdigit())
        if _CROSS.match(part):
            return ".".join(path[at:])
    kept = [p for p in path if not (inside and p in _LISTS)] or path
    if _GENERIC.match(last) or any(part.isdigit() for part in kept):
        return ".".join(kept)
    return last
