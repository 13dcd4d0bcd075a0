"""What of the matrix is kept: the values that ``structure=`` takes, and their text."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from fisherscope.errors import ParameterError

Per = Literal["tensor", "layer"]
Sharing = Literal["expand", "reduce"]
Bias = Literal["joint", "separate"]


@dataclass(frozen=True)
class Spec:
    """One structure with its options.

    ``str(spec)`` is its canonical text: the name, then the options that differ from their
    defaults, in the order of the fields. :func:`parse` reads it back.
    """

    name: ClassVar[str] = ""
    _registry: ClassVar[dict[str, type[Spec]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Spec._registry[cls.name] = cls

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), get_args(hints[field.name])
            if int in allowed:
                whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
                if value is not None and not whole:
                    raise ParameterError(
                        f"{self.name}: {field.name}={value!r} must be a whole number of at least "
                        "1, or be left out."
                    )
            elif value not in allowed:
                raise ParameterError(
                    f"{self.name}: {field.name}={value!r} is unknown; use one of {list(allowed)}."
                )

    def __str__(self) -> str:
        options = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}({','.join(options)})" if options else self.name


@dataclass(frozen=True)
class Diagonal(Spec):
    """One number per parameter."""

    name: ClassVar[str] = "diagonal"


@dataclass(frozen=True)
class Grouped(Spec):
    """The diagonal summed over each output row, channel or neuron."""

    name: ClassVar[str] = "grouped"


@dataclass(frozen=True)
class Block(Spec):
    """One dense matrix per block of parameters.

    Attributes:
        per: ``"tensor"``, or ``"layer"`` for all parameters of one module together.
            Default: ``"tensor"``.
    """

    name: ClassVar[str] = "block"
    per: Per = "tensor"


@dataclass(frozen=True)
class Dense(Spec):
    """The whole matrix; small models only."""

    name: ClassVar[str] = "dense"


@dataclass(frozen=True)
class KFAC(Spec):
    """One Kronecker product per layer. Source: Martens and Grosse (2015).

    Attributes:
        sharing: How positions that share a weight are treated, ``"expand"`` (each by
            itself) or ``"reduce"`` (summed or averaged first); Eschenhagen et al. (2023).
            Default: ``"expand"``.
        bias: ``"joint"`` makes the bias one more column of the weight, ``"separate"`` gives
            it its own block. Default: ``"joint"``.
        widest: Largest side of a factor: wider ones are kept as a block diagonal of near-equal
            pieces (Grosse et al. 2023, App. A). Default: ``None``, no limit.
    """

    name: ClassVar[str] = "kfac"
    sharing: Sharing = "expand"
    bias: Bias = "joint"
    widest: int | None = None


@dataclass(frozen=True)
class EKFAC(Spec):
    """KFAC's eigenvectors with fitted eigenvalues. Source: George et al. (2018).

    Attributes:
        sharing: See :class:`KFAC`. Default: ``"expand"``.
        bias: See :class:`KFAC`. Default: ``"joint"``.
        widest: See :class:`KFAC`. Default: ``None``.
    """

    name: ClassVar[str] = "ekfac"
    sharing: Sharing = "expand"
    bias: Bias = "joint"
    widest: int | None = None


def parse(text: str | Spec) -> Spec:
    """Read a structure.

    Args:
        text: A spec, which is returned as it is, or text such as ``"kfac"`` or
            ``"kfac(sharing=reduce,widest=4096)"``; spaces don't matter.

    Returns:
        The spec.

    Raises:
        ParameterError: If the structure, an option or its value is unknown; the message
            names what is allowed.
    """
    if isinstance(text, Spec):
        return text
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", "".join(str(text).split()))
    kind = Spec._registry.get(found[1]) if found and isinstance(text, str) else None
    if found is None or kind is None:
        known = [str(spec()) for spec in Spec._registry.values()]
        raise ParameterError(f"structure={text!r} is unknown; use one of {known}.")
    return kind(**_options(kind, text, found[2] or ""))


def base_name(text: str | Spec) -> str:
    """The name of a structure without its options.

    Args:
        text: A spec or its text.

    Returns:
        For instance ``"kfac"`` for ``"kfac(widest=64)"``.
    """
    return str(text).partition("(")[0]


def _options(kind: type[Spec], text: str | Spec, written: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    options: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        name, _, value = part.partition("=")
        if name not in names or name in options:
            raise ParameterError(
                f"structure={text!r}: {part!r} is not one of the options of {kind.name!r}, each "
                f"at most once: {[f'{n}=...' for n in names] or 'there are none'}."
            )
        options[name] = int(value) if re.fullmatch(r"-?[0-9]+", value) else value
    return options
