"""What may be called a task: a name that is safe to show and to store."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

from fisherscope.errors import TaskError

MAX_NAME = 100
# File systems take 255 bytes; a store quotes the name and may add a temporary suffix to it.
_MAX_QUOTED = 200


def check_task_name(name: object) -> str:
    """Accept a task name, or say what is wrong with it.

    Args:
        name: The name as the user wrote it.

    Returns:
        The same name.

    Raises:
        TaskError: If it is not text, empty, too long, has blanks around it, holds a path
            separator, ``..`` or an invisible character.
    """
    if not isinstance(name, str):
        raise TaskError(f"task name {name!r} is not text; put it in quotes")
    problem = _problem(name)
    if problem:
        shown = name if len(name) <= MAX_NAME else name[:40] + "…"
        raise TaskError(
            f"task name {shown!r} {problem}; use letters, digits, '-', '_' or '.', "
            "for example --task code=data/code.jsonl"
        )
    return name


def check_task_names(names: Iterable[object]) -> None:
    """Accept a set of task names that must live side by side in one folder.

    Args:
        names: The names, in the user's order.

    Raises:
        TaskError: If one is unusable, or two differ in nothing but case.
    """
    seen: dict[str, str] = {}
    for raw in names:
        name = check_task_name(raw)
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise TaskError(
                f"task names {seen[folded]!r} and {name!r} differ in nothing but case, which "
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
