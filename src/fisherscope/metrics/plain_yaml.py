"""YAML of plain values: no objects, no key twice, nothing that grows while it is read."""

from __future__ import annotations

from typing import Any

import yaml

from fisherscope.errors import ConfigError

# What the library lets out where a tag and its value don't go together (``!!int ''``).
_SENSELESS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

_DEEPEST = 50


def plain_yaml(text: str) -> Any:
    """Read YAML.

    Args:
        text: The text.

    Returns:
        Its value.

    Raises:
        ConfigError: If it is not valid; the message begins with ``":line:column"`` where that is
            known, to be put behind the name of the file.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: no object is built
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{place} is not valid YAML: {problem}") from error
    except _SENSELESS as error:
        raise ConfigError(f" is not valid YAML: {error!r}") from error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, deep nesting, and keys named twice (YAML keeps the last)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one node, refusing an alias: a few lines of them stand for gigabytes."""  # noqa: DOC201, DOC501
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                None,
                None,
                f"aliases (*{event.anchor}) are not read, write it out",
                event.start_mark,
            )
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        """Take an opening bracket, unless too many are open: looking for their ends takes long."""  # noqa: DOC501
        if self.flow_level >= _DEEPEST:
            raise yaml.MarkedYAMLError(
                None, None, f"more than {_DEEPEST} brackets are open", self.get_mark()
            )
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping, refusing duplicates."""  # noqa: DOC201, DOC501
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        None, None, f"key {key!r} is there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)
