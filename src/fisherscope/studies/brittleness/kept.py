"""Finished runs in a folder, so that a study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fisherscope.errors import StoreError
from fisherscope.results import plain
from fisherscope.structures.manifest import described_by, read_json, write_json

T = TypeVar("T")


class Kept:
    """What was computed once, by what it depends on.

    Args:
        folder: Where results are kept, or ``None`` for nowhere.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def once(
        self, key: Any, compute: Callable[[], dict[str, Any]], read: Callable[[dict[str, Any]], T]
    ) -> T:
        """A result, from the folder if it is there.

        Args:
            key: All that it depends on, as plain values.
            compute: Makes it.
            read: Makes of its plain values what they stand for.

        Returns:
            The result.

        Raises:
            StoreError: If the folder can't be written, or holds something else under that name.
        """
        if self.folder is None:
            return read(plain(compute()))
        name = hashlib.blake2b(json.dumps(plain(key)).encode(), digest_size=16).hexdigest()
        file = self.folder / f"{name}.json"
        if file.is_file():
            with described_by(file):
                return read(read_json(file))
        found = plain(compute())
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(temporary, found)
            os.replace(temporary, file)
        except OSError as error:
            raise StoreError(f"folder={self.folder} can't be written: {error}") from error
        return read(found)
