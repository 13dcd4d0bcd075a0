"""Finished measurements in a file, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from fisherscope.errors import IdentityError
from fisherscope.structures.manifest import described_by

T = TypeVar("T")


class Kept(Generic[T]):
    """Lines of JSON that are added one by one.

    Args:
        file: Where they are; ``None`` keeps nothing.
        identity: What the measurements depend on; those of another identity are refused.
        read: Makes of a line's value what it stands for.

    Attributes:
        rows: What the file held when it was opened.

    Raises:
        StoreError: If the file is damaged.
        IdentityError: If it holds measurements of another identity.
    """

    def __init__(self, file: Path | None, identity: str, read: Callable[[dict[str, Any]], T]):
        self.rows: list[T] = []
        self._file = file
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
            return
        with described_by(file):
            lines = file.read_text(encoding="utf-8").split("\n")
            mine = json.loads(lines[0])["identity"] == identity
        if not mine:
            raise IdentityError(
                f"{file} holds measurements of another model, other data or other settings; "
                "choose another folder, or delete it"
            )
        with described_by(file):
            self.rows = [read(json.loads(line)) for line in lines[1:-1]]
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
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
