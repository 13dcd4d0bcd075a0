"""Numbers and names as readers see them: rounding, plus-minus, short labels."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def number(value: Any) -> float | None:
    """A finite float, or None for anything that is not a number.

    Args:
        value: Whatever a results file holds at a numeric field.

    Returns:
        The value as a float; None for missing, boolean, textual or non-finite content.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def clean(value: Any) -> Any:
    """Replace characters that could break a page, a terminal or an encoder.

    Control characters carry terminal escapes, bidirectional marks reorder what follows
    them, and lone surrogates cannot be written as UTF-8.

    Args:
        value: Plain JSON content; strings are cleaned at every depth, keys included.

    Returns:
        The same structure with white space and unusable characters made harmless.
    """
    if isinstance(value, str):
        return "".join(_harmless(character) for character in value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def _harmless(character: str) -> str:
    if character in "\t\n\r\v\f\x85\u2028\u2029":
        return " "
    if unicodedata.category(character) in {"Cc", "Cs"} or character in _BIDI:
        return "\ufffd"
    return character


def significant(value: float | None, digits: int = 4) -> str:
    """Fixed number of significant digits, in a form that a program can read back.

    Args:
        value: The number, or None.
        digits: Significant digits.

    Returns:
        Text such as ``0.0123``, ``12,300`` or ``1.23e-5``; a dash for None.
    """
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    exponent = _exponent(value, digits)
    if -4 < exponent < 6:
        return f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return f"{value / 10.0**exponent:.{digits - 1}f}e{exponent}"


def pretty(value: float | None, digits: int = 3) -> str:
    """A number for running text, with a power of ten instead of an ``e``.

    Args:
        value: The number, or None.
        digits: Significant digits.

    Returns:
        Text such as ``0.0123`` or ``1.23·10⁻⁵``; a dash for None.
    """
    mantissa, mark, exponent = significant(value, digits).partition("e")
    return _minus(f"{mantissa}·{power(int(exponent))}" if mark else mantissa)


def plus_minus(value: float | None, error: float | None, *, coarsest: float = 0.0) -> str:
    """A value with its error, both rounded at the error's leading digit.

    Args:
        value: The number, or None.
        error: Its standard error or half-width, or None where there is none.
        coarsest: Largest error of a list, so that all its lines get the same decimals.

    Returns:
        Text such as ``0.412 ± 0.013`` or ``(1.23 ± 0.04)·10⁻⁵``.
    """
    if value is None:
        return MISSING
    if error is None or error <= 0:
        return pretty(value)
    exponent = _exponent(max(abs(value), error), 3)
    if -4 < exponent < 6:
        places = _places(max(error, coarsest))
        return _minus(f"{value:,.{places}f} ± {error:,.{places}f}")
    scale = 10.0**exponent
    places = _places(error / scale)
    inside = f"{value / scale:.{places}f} ± {error / scale:.{places}f}"
    return _minus(f"({inside})·{power(exponent)}")


def percent(value: float | None, error: float | None = None, *, coarsest: float = 0.0) -> str:
    """A fraction as a percentage, with its error where there is one.

    Args:
        value: The fraction, or None.
        error: Standard error of the fraction, or None.
        coarsest: Largest error of a list, so that all its lines get the same decimals.

    Returns:
        Text such as ``41.2% ± 1.3%``, ``41.2%`` or ``<0.01%``.
    """
    if value is None:
        return MISSING
    if error is not None and error > 0:
        places = min(2, _places(100 * max(error, coarsest)))
        return _minus(f"{100 * value:.{places}f}% ± {100 * error:.{places}f}%")
    if 0 < value < 1e-4:
        return "<0.01%"
    places = 2 if value < 0.01 else 1
    return _minus(f"{100 * value:.{places}f}%")


def interval(low: float | None, high: float | None, *, digits: int = 3) -> str:
    """An interval in brackets.

    Args:
        low: Lower limit, or None.
        high: Upper limit, or None.
        digits: Significant digits of each limit.

    Returns:
        Text such as ``[0.58, 0.66]``, or ``no interval`` when a limit is missing.
    """
    if low is None or high is None:
        return "no interval"
    return f"[{pretty(low, digits)}, {pretty(high, digits)}]"


def error_of(low: float | None, high: float | None) -> float | None:
    """Standard error of a normal estimate with this 95% interval.

    Args:
        low: Lower limit, or None.
        high: Upper limit, or None.

    Returns:
        The standard error; None when a limit is missing.
    """
    return None if low is None or high is None else (high - low) / 2 / 1.96


def power(exponent: int) -> str:
    """A power of ten.

    Args:
        exponent: The exponent.

    Returns:
        Text such as ``10⁻⁵``.
    """
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def count(value: float | None) -> str:
    """A count in words that fit a headline.

    Args:
        value: The count, or None.

    Returns:
        Text such as ``842``, ``18.4 thousand``, ``124 million`` or ``7.24 billion``.
    """
    if value is None:
        return MISSING
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e4, "thousand")):
        if abs(value) >= size:
            unit = 1e3 if word == "thousand" else size
            return f"{significant(value / unit, 3)} {word}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A duration in the two largest units that matter.

    Args:
        seconds: Seconds, or None.

    Returns:
        Text such as ``4.2 s``, ``3 min 07 s`` or ``2 h 05 min``.
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: float | None) -> str:
    """An amount of memory.

    Args:
        n_bytes: Bytes, or None.

    Returns:
        Text such as ``1.93 GiB``.
    """
    if n_bytes is None:
        return MISSING
    for scale, word in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= scale:
            return f"{significant(n_bytes / scale, 3)} {word}"
    return f"{n_bytes:.0f} B"


def plural(n: int, noun: str) -> str:
    """A count with its noun.

    Args:
        n: How many.
        noun: The regular noun in the singular.

    Returns:
        Text such as ``1 cell`` or ``12 cells``.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def width(text: str) -> int:
    """Columns that a text takes; East Asian wide characters take two.

    Args:
        text: One line.

    Returns:
        The number of columns.
    """
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def spoken(name: str) -> str:
    """A task name in a sentence: cut if long, in quotes if it could be misread.

    Args:
        name: The full name.

    Returns:
        At most 42 columns.
    """
    short = _middle(name, 40)
    plain = name.replace("-", "").replace("_", "").isalnum()
    return short if plain and short == name and len(name) > 2 else f"“{short}”"


def shorten(names: Sequence[str], columns: int) -> list[str]:
    """Labels that fit, keep both ends of each name and stay different from each other.

    Args:
        names: Full names.
        columns: Most columns that a label may take, at least 6.

    Returns:
        One label per name, in order.
    """
    labels = [_middle(name or "(empty)", columns) for name in names]
    repeated = {label for label, n in Counter(labels).items() if n > 1}
    return [
        f"{_middle(label, columns - 1 - len(str(i)))}#{i}" if label in repeated else label
        for i, label in enumerate(labels, start=1)
    ]


def _middle(text: str, columns: int) -> str:
    if width(text) <= columns:
        return text
    head, tail = list(text[: len(text) // 2]), list(text[len(text) // 2 :])
    while head and tail and width("".join(head + tail)) > columns - 1:
        if len(head) > len(tail):
            head.pop()
        else:
            tail.pop(0)
    return "".join(head) + "…" + "".join(tail)


def _exponent(value: float, digits: int) -> int:
    # After rounding, so that 9.996 with three digits counts as ten.
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _places(error: float) -> int:
    # Decimals that show one digit of the error, or two where it starts with 1 or 2.
    mantissa, _, exponent = f"{error:.1e}".partition("e")
    digits = 1 if float(mantissa) < 3 else 0
    return max(0, digits - int(exponent))


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")
