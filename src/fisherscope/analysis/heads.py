"""Which slices of which tensors belong to which attention head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fisherscope.errors import ParameterError
from fisherscope.naming import address

_SEPARATE = {
    **dict.fromkeys(("q_proj", "query", "q", "q_lin", "query_proj"), "q"),
    **dict.fromkeys(("k_proj", "key", "k", "k_lin", "key_proj"), "k"),
    **dict.fromkeys(("v_proj", "value", "v", "v_lin", "value_proj"), "v"),
}
_FUSED = {"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv"}
_OUTPUT = ("o_proj", "out_proj", "out_lin", "o", "Wo", "dense", "c_proj", "output.dense")
# How the rows of a fused projection are laid out, by config.model_type:
# "blocks": all queries, then all keys, then all values;
# "groups": per key-value head its queries, its key, its value.
_LAYOUT = {
    **dict.fromkeys(("gpt2", "phi3", "modernbert"), "blocks"),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon", "gpt_bigcode"), "groups"),
}
_ELSE = 'Use per="module" or per="tensor" (for masks structure="weight" or "neuron") instead.'


@dataclass(frozen=True)
class Part:
    """A run of rows (``dim`` 0) or columns (``dim`` 1) of one tensor."""

    tensor: str
    dim: int
    start: int
    length: int

    def of(self, values: Tensor) -> Tensor:
        """The part's elements.

        Args:
            values: A tensor in the parameter's shape.

        Returns:
            A view.
        """
        return values.narrow(self.dim, self.start, self.length)


@dataclass(frozen=True)
class Head:
    """One head's share of one projection.

    Attributes:
        attention: Name of the attention module.
        layer: Layer number, ``None`` where the name has none.
        role: ``"q"``, ``"k"``, ``"v"`` (rows, bias included) or ``"o"`` (the columns of the
            output projection that read this head; its bias belongs to no head).
        head: Query head for ``"q"`` and ``"o"``, key-value head for ``"k"`` and ``"v"``.
        queries: Number of query heads that use it: 1 unless key-value heads are shared.
        parts: The slices of parameter tensors.
    """

    attention: str
    layer: int | None
    role: str
    head: int
    queries: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Geometry:
    heads: int
    kv_heads: int
    head_dim: int
    layout: str | None
    model_type: str

    def __str__(self) -> str:
        return (
            f"{self.heads} heads, {self.kv_heads} key-value heads of size {self.head_dim} "
            f"(from the configuration of {self.model_type!r})"
        )


def heads(model: nn.Module, parameters: Iterable[str]) -> list[Head]:
    """Attention heads among some parameters of a model.

    Separate projections ``q``, ``k``, ``v`` are split by rows into contiguous heads;
    key-value heads that several query heads share are kept as they are. Fused projections
    are split by the layout of their model type; transposed weights (``Conv1D``) by columns.

    Args:
        model: A Hugging Face model with a ``config``.
        parameters: Names of the parameters wanted.

    Returns:
        One entry per head and role, in the order of the parameters.

    Raises:
        ParameterError: If the model has no configuration, if no attention projection is
            among the parameters, if a fused projection has an unknown layout, or if a shape
            doesn't fit the configured heads.
    """
    wanted = dict.fromkeys(parameters)
    if getattr(model, "config", None) is None:
        raise ParameterError(
            "attention heads need their number from model.config, and this model has no config. "
            + _ELSE
        )
    present = dict(model.named_parameters(remove_duplicate=False))
    found: list[Head] = []
    for attention in dict.fromkeys(filter(None, map(_attention, wanted))):
        geometry = _geometry(model, attention)
        for role, module in _projections(attention, present):
            names = [f"{module}.{leaf}" for leaf in ("weight", "bias")]
            names = [name for name in names if name in wanted]
            transposed = isinstance(model.get_submodule(module), Conv1D)
            shapes = {name: tuple(present[name].shape) for name in names}
            found += _split(role, attention, shapes, transposed, geometry)
    if not found:
        raise ParameterError(
            "no attention projection is among the parameters. Known names: "
            f"{', '.join([*_SEPARATE, *sorted(_FUSED)])}. {_ELSE}"
        )
    return found


def _attention(name: str) -> str | None:
    # The attention module that a q, k, v or fused projection belongs to.
    module, _, leaf = name.rpartition(".")
    parent, _, projection = module.rpartition(".")
    if leaf in {"weight", "bias"} and projection in {*_SEPARATE, *_FUSED}:
        return parent
    return None


def _projections(attention: str, present: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Role and name of each projection of an attention module.
    for projection in (*_SEPARATE, *sorted(_FUSED)):
        if f"{attention}.{projection}.weight" in present:
            yield _SEPARATE.get(projection, "fused"), f"{attention}.{projection}"
    # BERT keeps q, k, v under attention.self and the output under attention.output.
    root = attention.removesuffix(".self")
    for projection in _OUTPUT:
        if f"{root}.{projection}.weight" in present:
            yield "o", f"{root}.{projection}"
            return
    raise ParameterError(
        f"cannot find the output projection of {attention!r}; known names: "
        f"{', '.join(_OUTPUT)}. {_ELSE}"
    )


def _geometry(model: nn.Module, attention: str) -> _Geometry:
    # Heads and their size, from the attention module's own configuration where it has one.
    module = model.get_submodule(attention)
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "num_attention_heads"):
        whole: Any = model.config
        config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    count = getattr(config, "num_attention_heads", None)
    if ".decoder." in f".{attention}":
        count = getattr(config, "decoder_attention_heads", count)
    if not count:
        raise ParameterError(
            "attention heads need num_attention_heads, which the configuration for "
            f"{attention!r} does not have. {_ELSE}"
        )
    kv_heads = getattr(config, "num_key_value_heads", None) or count
    model_type = getattr(config, "model_type", "")
    if model_type == "falcon" and not config.new_decoder_architecture:
        kv_heads = 1 if config.multi_query else count
    elif model_type == "falcon":
        kv_heads = config.num_kv_heads
    elif model_type == "gpt_bigcode":
        kv_heads = 1 if config.multi_query else count
    size = next(
        (s for s in (getattr(h, "head_dim", None) for h in (module, config)) if s),
        getattr(config, "hidden_size", 0) // count,
    )
    return _Geometry(count, kv_heads, size, _LAYOUT.get(model_type), model_type)


def _split(
    role: str,
    attention: str,
    shapes: dict[str, tuple[int, ...]],
    transposed: bool,
    geometry: _Geometry,
) -> Iterator[Head]:
    # The heads of one projection.
    layer = next((address(name)[0] for name in shapes), None)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if role == "o":
        width = geometry.heads * geometry.head_dim
        dim = 0 if transposed else 1
        for name, shape in matrices.items():
            _fits(name, shape, shape[dim], width, geometry)
        for head in range(geometry.heads) if matrices else ():
            start = head * geometry.head_dim
            parts = [Part(name, dim, start, geometry.head_dim) for name in matrices]
            yield Head(attention, layer, "o", head, 1, tuple(parts))
        return

    places = list(_places(role, next(iter(shapes), ""), geometry))
    width = sum(length for _, _, _, length in places)
    dims = {name: 1 if transposed and name in matrices else 0 for name in shapes}
    gated = role == "q" and all(shape[dims[name]] == 2 * width for name, shape in shapes.items())
    # A gated query projection (one gate per query, head by head) has heads twice as long.
    scale = 2 if gated else 1
    for name, shape in shapes.items():
        _fits(name, shape, shape[dims[name]], width * scale, geometry)
    for part, head, start, length in places if shapes else ():
        parts = [Part(n, dims[n], start * scale, length * scale) for n in shapes]
        shared = 1 if part == "q" else geometry.heads // geometry.kv_heads
        yield Head(attention, layer, part, head, shared, tuple(parts))


def _places(role: str, name: str, g: _Geometry) -> Iterator[tuple[str, int, int, int]]:
    # Role, head, first row and number of rows of each head of a projection.
    size, queries = g.head_dim, g.heads // g.kv_heads
    if role != "fused":
        for head in range(g.heads if role == "q" else g.kv_heads):
            yield role, head, head * size, size
        return
    if g.layout is None:
        raise ParameterError(
            f"it is not known how {name!r} lays out queries, keys and values for model "
            f"type {g.model_type!r}; known: {', '.join(sorted(_LAYOUT))}. {_ELSE}"
        )
    for head in range(g.heads):
        group, member = divmod(head, queries)
        row = head if g.layout == "blocks" else group * (queries + 2) + member
        yield "q", head, row * size, size
    for offset, role in enumerate("kv"):
        for head in range(g.kv_heads):
            blocks = g.heads + offset * g.kv_heads + head
            row = blocks if g.layout == "blocks" else head * (queries + 2) + queries + offset
            yield role, head, row * size, size


def _fits(name: str, shape: tuple[int, ...], actual: int, expected: int, g: _Geometry) -> None:
    if actual != expected:
        raise ParameterError(
            f"{name!r} has shape {shape}, but {g} need {expected} along the heads. {_ELSE}"
        )
