"""Parts of a model by the beginning of their names, component by component."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fisherscope.errors import ParameterError

_SHOWN = 3


def under(names: Iterable[str], prefix: str | None) -> list[str]:
    """The names that lie under a module.

    Whole components are compared, so ``"layers.1"`` is not the beginning of
    ``"layers.10.weight"``; wrappers before them don't matter, so it is found in
    ``"model.layers.1.weight"``.

    Args:
        names: Parameter names.
        prefix: Dotted components that stand in the name one after another; ``None`` for all.

    Returns:
        Those names, in the order given.

    Raises:
        ParameterError: If there are none.
    """
    names = list(names)
    if prefix is None:
        return names
    pattern = re.compile(rf"(?:^|\.){re.escape(prefix)}(?:\.|$)")
    found = [name for name in names if prefix and pattern.search(name)]
    if not found:
        raise ParameterError(
            f"layers_prefix={prefix!r}: no parameter has these components in its name; names look "
            f"like {', '.join(map(repr, names[:_SHOWN]))}."
        )
    return found
