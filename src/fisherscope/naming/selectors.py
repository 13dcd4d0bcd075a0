"""The ways to say which parameters are meant, and their forms in text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from fisherscope.errors import ParameterError

_REGEX = "re:"
_RANGE = re.compile(r"layers\[\s*(?:(-?\d+)|(-?\d+)?\s*:\s*(-?\d+)?)\s*\]")
_FLAGS = {re.ASCII: "a", re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}


@dataclass(frozen=True)
class Layers:
    """The parameters of some consecutive layers, as :func:`address` numbers them.

    Slices as in Python: from ``start`` up to, not including, ``stop``; negative numbers
    count from the end, ``None`` leaves a side open, and what reaches beyond the model is cut
    off. Where a model has several stacks of layers (an encoder and a decoder) each is sliced
    on its own. Parameters outside the layers, such as embeddings and heads, are in no range.

    Attributes:
        start: First layer.
        stop: The layer after the last one.

    Example:
        >>> str(Layers(3, 7)), str(Layers(-2, None))
        ('layers[3:7]', 'layers[-2:]')
    """

    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        for bound in (self.start, self.stop):
            if isinstance(bound, bool) or not isinstance(bound, int | None):
                raise ParameterError(
                    f"{bound!r} is not a layer number: pass integers or None to layers()"
                )
        start, stop = self.start or 0, self.stop
        if stop is not None and (start < 0) == (stop < 0) and start >= stop:
            raise ParameterError(
                f"{self} holds no layer in any model: the second number is the layer after the last"
            )

    def __str__(self) -> str:
        bounds = ["" if bound is None else str(bound) for bound in (self.start, self.stop)]
        return f"layers[{':'.join(bounds)}]"

    def holds(self, layer: int, count: int) -> bool:
        """Whether a layer is in the range.

        Args:
            layer: Its number, from 0.
            count: One more than the highest number in its stack.

        Returns:
            True if it is.
        """
        return layer in range(count)[self.start : self.stop]


Selector = str | re.Pattern[str] | Layers | Callable[[str, nn.Parameter], bool]
"""One way to say which parameters are meant, see :func:`selectors`."""

Selection = Selector | Sequence[Selector] | None
"""One or several selectors, whose parameters are united; ``None`` means all."""


def layers(start: int | None = None, stop: int | None = None) -> Layers:
    """The parameters of layers ``start`` up to, not including, ``stop``.

    Args:
        start: First layer; negative numbers count from the end. Default: ``None``, from the
            first one on.
        stop: The layer after the last one. Default: ``None``, to the end.

    Returns:
        What ``parameters=`` takes; ``"layers[3:7]"`` is the same in text.
    """
    return Layers(start, stop)


def selectors(selection: Selection) -> list[Selector]:
    """Take a selection apart and read the forms in text.

    ``"re:…"`` becomes a compiled regular expression, ``"layers[3:7]"`` and ``"layers[-1]"``
    a :class:`Layers`; any other text stays a glob.

    Args:
        selection: One selector or a list or tuple of them, not ``None``.

    Returns:
        At least one selector.

    Raises:
        ParameterError: If there is none, if one is of no known kind, or if a regular
            expression is broken.
    """
    if isinstance(selection, Sequence) and not isinstance(selection, str):
        found = [_read(one) for one in selection]
    else:
        found = [_read(selection)]
    if not found:
        raise ParameterError(
            f"parameters={selection!r} selects nothing: leave it out (None) to take all"
        )
    return found


def to_text(selection: Selection) -> str | list[str] | None:
    """Write a selection in the form that config files and the command line take.

    Args:
        selection: Any selection.

    Returns:
        Text, a list of texts, or ``None``; it selects the same. A function, which text cannot
        hold, raises :class:`ParameterError` by its name.
    """
    if selection is None:
        return None
    if isinstance(selection, Sequence) and not isinstance(selection, str):
        return [_write(one) for one in selectors(selection)]
    return _write(*selectors(selection))


def described(selector: Selector) -> str:
    """Name a selector in a message.

    Args:
        selector: Any selector.

    Returns:
        Its form in text; for a function its name.
    """
    if isinstance(selector, str):
        return repr(selector)
    if callable(selector):
        return f"the predicate {getattr(selector, '__qualname__', repr(selector))}"
    return repr(_write(selector))


def _read(one: Any) -> Selector:
    if isinstance(one, str):
        return _read_text(one)
    if isinstance(one, re.Pattern) and isinstance(one.pattern, str):
        return one
    if isinstance(one, Layers):
        return one
    if callable(one) and not isinstance(one, type):
        return cast(Callable[[str, nn.Parameter], bool], one)
    raise ParameterError(
        f"parameters cannot be selected by {one!r}: pass a glob over whole names ('*.mlp.*'), a "
        "compiled regular expression (of str), a predicate (name, parameter) -> bool, layers(3, 7)"
    )


def _read_text(text: str) -> Selector:
    if text.startswith(_REGEX):
        try:
            return re.compile(text.removeprefix(_REGEX))
        except re.error as error:
            raise ParameterError(f"{text!r} is not a regular expression: {error}") from error
    if (match := _RANGE.fullmatch(text)) is None:
        return text
    single, start, stop = (None if number is None else int(number) for number in match.groups())
    if single is not None:
        # After layer -1 comes the end of the stack, not layer 0.
        return Layers(single, single + 1 or None)
    return Layers(start, stop)


def _write(selector: Selector) -> str:
    if isinstance(selector, re.Pattern):
        written = re.compile(selector.pattern).flags
        letters = "".join(f for flag, f in _FLAGS.items() if selector.flags & flag & ~written)
        return f"{_REGEX}{f'(?{letters})' if letters else ''}{selector.pattern}"
    if callable(selector):
        raise ParameterError(
            f"{described(selector)} cannot be written to a file: select by globs, 're:…' or "
            "'layers[3:7]' instead"
        )
    return str(selector)
