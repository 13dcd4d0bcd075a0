"""Finished measurements in a file, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

from fisherscope.errors import IdentityError, StoreError
from fisherscope.structures.manifest import described_by

T = TypeVar("T")
R = TypeVar("R")


class Kept(Generic[T]):
    """Lines of JSON that are added one by one.

    Args:
        file: Where they are; ``None`` keeps nothing.
        identity: What all measurements depend on; those of another identity are refused.
            Default: nothing that is not in their keys.
        read: Makes of a line's value what it stands for. Default: nothing else.

    Attributes:
        rows: What the file held when it was opened.

    Raises:
        IdentityError: If the file holds measurements of another identity. If it is damaged, or
            can't be written, :class:`StoreError`.
    """

    def __init__(
        self,
        file: Path | None,
        identity: str = "",
        read: Callable[[dict[str, Any]], T] = dict,
    ):
        self.rows: list[T] = []
        self._file = file
        self._found: dict[str, dict[str, Any]] = {}
        if file is None:
            return
        with described_by(file):
            lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else [""]
        if len(lines) == 1:  # none is whole: whoever began it was killed
            self._replace([json.dumps({"identity": identity})])
            return
        with described_by(file):
            mine = json.loads(lines[0])["identity"] == identity
        if not mine:
            raise IdentityError(
                f"{file} holds measurements of another model, other data or other settings; "
                "choose another folder, or delete it"
            )
        with described_by(file):
            rows = [json.loads(line) for line in lines[1:-1]]
            self._found = {json.dumps(row["key"]): row["found"] for row in rows if "found" in row}
            self.rows = [read(row) for row in rows]
        # A line that was cut off by the interruption is dropped.
        if lines[-1]:
            self._replace(lines[:-1])

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one more.

        Args:
            row: Plain values; a float reads back as the same float.
        """
        if self._file is not None:
            self._append(row)

    def once(
        self, key: Any, compute: Callable[[], dict[str, Any]], read: Callable[[dict[str, Any]], R]
    ) -> R:
        """A result, computed only if there is none for this key.

        Args:
            key: All that it depends on beside the identity, as plain values.
            compute: Makes it, of plain values.
            read: Makes of these what they stand for.

        Returns:
            The result. If the file holds something else under the key, :class:`StoreError` is
            raised.
        """
        place = json.dumps(key)
        if place not in self._found:
            found = compute()
            self.add({"key": key, "found": found})
            self._found[place] = found
        with described_by(self._file) if self._file else nullcontext():
            return read(self._found[place])

    def _replace(self, lines: list[str]) -> None:
        assert self._file is not None
        temporary = self._file.with_suffix(".part")
        with self._written():
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
            os.replace(temporary, self._file)

    @contextmanager
    def _written(self) -> Generator[None]:
        assert self._file is not None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise StoreError(f"{self._file} can't be written: {error}") from error

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        with self._written(), self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
