"""What a task or a model may be called: a name that is safe to show and to store."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Literal
from urllib.parse import quote

from fisherscope.errors import ConfigError, FisherscopeError, TaskError

Kind = Literal["task", "model"]

MAX_NAME = 100
# File systems take 255 bytes; a store quotes the name and may add a temporary suffix to it.
_MAX_QUOTED = 200
_ERROR: dict[Kind, type[FisherscopeError]] = {"task": TaskError, "model": ConfigError}
_EXAMPLE: dict[Kind, str] = {
    "task": "--task code=data/code.jsonl",
    "model": "--model base=models/base",
}


def check_name(name: object, kind: Kind = "task") -> str:
    """Accept a name, or say what is wrong with it.

    A name that is not text, is empty or too long, has blanks around it, or holds a path
    separator, ``..`` or an invisible character is a ``TaskError``, of a model a ``ConfigError``.

    Args:
        name: The name as the user wrote it.
        kind: What is named. Default: ``"task"``.

    Returns:
        The same name.
    """
    if not isinstance(name, str):
        raise _ERROR[kind](f"{kind} name {name!r} is not text; put it in quotes")
    problem = _problem(name)
    if problem:
        shown = name if len(name) <= MAX_NAME else name[:40] + "…"
        raise _ERROR[kind](
            f"{kind} name {shown!r} {problem}; use letters, digits, '-', '_' or '.', "
            f"for example {_EXAMPLE[kind]}"
        )
    return name


def check_names(names: Iterable[object], kind: Kind = "task") -> None:
    """Accept a set of names that must live side by side in one folder.

    One that is unusable is an error, and so are two that differ in nothing but case.

    Args:
        names: The names, in the user's order.
        kind: What is named. Default: ``"task"``.
    """
    seen: dict[str, str] = {}
    for raw in names:
        name = check_name(raw, kind)
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise _ERROR[kind](
                f"{kind} names {seen[folded]!r} and {name!r} differ in nothing but case, which "
                "some file systems cannot keep apart; rename one of them"
            )
        seen[folded] = name


def _problem(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"has {len(name)} characters, more than {MAX_NAME}"
    if "/" in name or "\\" in name:
        return "has a path separator in it"
    if ".." in name or name == ".":
        return "has a path in it ('.' or '..')"
    if name != name.strip():
        return "begins or ends with a blank"
    for character in name:
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            return f"holds the control character U+{ord(character):04X}"
    if len(quote(name, safe="")) > _MAX_QUOTED:
        return "is too long for a folder name once it is quoted"
    return None
