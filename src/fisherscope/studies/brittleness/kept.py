"""Finished runs in a folder, so that a study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fisherscope.errors import StoreError
from fisherscope.results import plain
from fisherscope.structures.manifest import read_json, write_json


class Kept:
    """What was computed once, by what it depends on.

    Args:
        folder: Where results are kept, or ``None`` for nowhere.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def once(self, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result, from the folder if it is there.

        Args:
            key: All that it depends on, as plain values.
            compute: Makes it.

        Returns:
            The result as plain values.

        Raises:
            StoreError: If the folder can't be written.
        """
        if self.folder is None:
            return plain(compute())
        name = hashlib.blake2b(json.dumps(plain(key)).encode(), digest_size=16).hexdigest()
        file = self.folder / f"{name}.json"
        if file.is_file():
            return read_json(file)
        found = plain(compute())
        temporary = file.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(temporary, found)
            os.replace(temporary, file)
        except OSError as error:
            raise StoreError(f"folder={self.folder} can't be written: {error}") from error
        return found
