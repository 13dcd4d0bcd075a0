"""What an argument may be: a number in a range, one of several words, a list, named tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import cast

from torch import Tensor

from fisherscope.errors import ParameterError


def check_number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    more: str = "",
) -> None:
    """Make sure that an argument is a finite number in a range.

    Args:
        name: The argument's name.
        value: What was passed; numpy's numbers are numbers, flags and text are none.
        low: Least value. Default: ``None``, no limit.
        above: Value that it must exceed. Default: ``None``.
        most: Largest value. Default: ``None``.
        below: Value that it must stay under. Default: ``None``.
        more: Ends the message. Default: nothing.

    Raises:
        ParameterError: If it is something else.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    fits = (
        math.isfinite(number)
        and (low is None or number >= low)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not fits:
        limits = {"of at least": low, "above": above, "of at most": most, "below": below}
        said = " and".join(f" {word} {end:g}" for word, end in limits.items() if end is not None)
        raise ParameterError(f"{name}={value!r} must be a finite number{said}{more}.")


def size_in_bytes(name: str, value: object) -> int | None:
    """Read a size.

    Args:
        name: The argument's name.
        value: Bytes, or text such as ``"8GB"``, ``"1.5 gb"`` (powers of 1000) or ``"8GiB"`` (of
            1024); ``None`` for no size.

    Returns:
        Bytes, or ``None``.

    Raises:
        ParameterError: If it is no size.
    """
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool):
        size = float(value)
        if math.isfinite(size) and size >= 0:
            return int(size)
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ParameterError(f"{name}={value!r} is no size; give bytes, or text such as '8GB'")
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def check_whole(name: str, value: object, *, low: int, most: int | None = None) -> None:
    """Make sure that an argument is a whole number in a range.

    Args:
        name: The argument's name.
        value: What was passed; 2.0 is not whole.
        low: Least value.
        most: Largest value. Default: ``None``, no limit.

    Raises:
        ParameterError: If it is something else.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < low or (most is not None and number > most):
        said = f"of at least {low}" if most is None else f"between {low} and {most}"
        raise ParameterError(f"{name}={value!r} must be a whole number {said}.")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Make sure that an argument is one of several words.

    Args:
        name: The argument's name.
        value: What was passed.
        known: The words.

    Raises:
        ParameterError: If it is something else.
    """
    if not isinstance(value, str) or value not in known:
        raise ParameterError(f"{name}={value!r} is unknown; use one of {list(known)}.")


def check_list(name: str, value: object, wanted: str) -> None:
    """Make sure that an argument is a list or tuple; text and modules only look like one.

    Args:
        name: The argument's name.
        value: What was passed.
        wanted: What to pass.

    Raises:
        ParameterError: If it is something else.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ParameterError(f"{name} is {_a(value)}; pass {wanted}.")


def check_mapping(name: str, value: object, wanted: str) -> None:
    """Make sure that an argument is a mapping.

    Args:
        name: The argument's name.
        value: What was passed.
        wanted: What to pass.

    Raises:
        ParameterError: If it is something else.
    """
    if not isinstance(value, Mapping):
        raise ParameterError(f"{name} is {_a(value)}; pass {wanted}.")


def check_tensors(name: str, value: object, wanted: str) -> None:
    """Make sure that an argument holds tensors under names.

    Args:
        name: The argument's name.
        value: What was passed.
        wanted: What to pass.

    Raises:
        ParameterError: If it is no mapping, a name is no text, or a value no tensor.
    """
    check_mapping(name, value, wanted)
    for key, tensor in cast(Mapping[object, object], value).items():
        if not isinstance(key, str):
            raise ParameterError(f"{name} names {key!r}, {_a(key)}; names are text.")
        if not isinstance(tensor, Tensor):
            raise ParameterError(f"{name} holds {_a(tensor)} under {key!r}, not a tensor.")


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
