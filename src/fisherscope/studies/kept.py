"""Finished measurements in a file, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fisherscope.errors import IdentityError, StoreError


class Kept:
    """Lines of JSON that are added one by one.

    Args:
        file: Where they are; ``None`` keeps nothing.
        identity: What all measurements depend on; those of another identity are refused.
            Default: nothing that is not in their keys.

    Attributes:
        rows: What the file held when it was opened.

    Raises:
        StoreError: If the file is damaged or can't be written.
        IdentityError: If it holds measurements of another identity.
    """

    def __init__(self, file: Path | None, identity: str = ""):
        self.rows: list[dict[str, Any]] = []
        self._file = file
        self._found: dict[str, dict[str, Any]] = {}
        if file is None:
            return
        if not file.exists():
            self._append({"identity": identity})
            return
        lines = file.read_text(encoding="utf-8").split("\n")
        try:
            mine = json.loads(lines[0])["identity"] == identity
            self.rows = [json.loads(line) for line in lines[1:-1]]
            whole = [row for row in self.rows if "found" in row]
            self._found = {json.dumps(row["key"]): row["found"] for row in whole}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{file} is damaged; delete it and start again") from error
        if not mine:
            raise IdentityError(
                f"{file} holds measurements of another model, other data or other settings; "
                "choose another folder, or delete it"
            )
        # A line that was cut off by the interruption is dropped.
        if lines[-1]:
            temporary = file.with_suffix(".part")
            temporary.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
            os.replace(temporary, file)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one more.

        Args:
            row: Plain values; a float reads back as the same float.
        """
        if self._file is not None:
            self._append(row)

    def once(self, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result, computed only if there is none for this key.

        Args:
            key: All that it depends on beside the identity, as plain values.
            compute: Makes it, of plain values.

        Returns:
            The result.
        """
        place = json.dumps(key)
        if place not in self._found:
            self._found[place] = compute()
            self.add({"key": key, "found": self._found[place]})
        return self._found[place]

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StoreError(f"{self._file} can't be written: {error}") from error
