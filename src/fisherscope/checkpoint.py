"""Where the state of an unfinished estimate is kept, and how often."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fisherscope.errors import ParameterError, StoreError
from fisherscope.structures.locks import ESTIMATING, only_one


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of an unfinished estimate is kept, and how often.

    Whatever these say, it is also kept at the end of each pass, after each eigendecomposition,
    and at the end of the batch in which SIGINT or SIGTERM arrives.

    Attributes:
        folder: The folder; missing ones are made.
        minutes: Most time between two writes. A write takes as long as saving the Fisher.
        batches: Most batches between two writes; ``None`` for any number.
    """

    folder: str | Path
    minutes: float = 2.0
    batches: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.minutes, (int, float)) and 0 <= self.minutes < math.inf):
            raise ParameterError(
                f"Checkpoint(minutes={self.minutes!r}) must be a finite number, at least 0"
            )
        whole = isinstance(self.batches, int) and not isinstance(self.batches, bool)
        if self.batches is not None and not (whole and self.batches > 0):
            raise ParameterError(
                f"Checkpoint(batches={self.batches!r}) must be a positive integer, or None"
            )

    @classmethod
    def of(cls, value: str | Path | Self | None) -> Self | None:
        """What an option ``checkpoint=`` means.

        Args:
            value: A folder, a checkpoint or ``None``.

        Returns:
            A checkpoint, or ``None``.
        """
        return value if value is None or isinstance(value, cls) else cls(str(value))

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Keep other estimates out of the folder; two of them are never merged.

        Yields:
            Nothing.

        Raises:
            StoreError: If another process uses it, or it can't be made.
        """
        place = Path(os.path.realpath(self.path))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"can't make the folder {place.parent}: {error}. Give checkpoint= another place."
            ) from error
        with only_one(place, ESTIMATING):
            yield

    def within(self, name: str) -> Self:
        """The same for a part of the estimate.

        Args:
            name: Of the part.

        Returns:
            A checkpoint in a folder of that name inside this one.
        """
        return dataclasses.replace(self, folder=self.path / name)


class Pace:
    """Tells when it is time to write again.

    Args:
        checkpoint: How often, or ``None`` for never.
    """

    def __init__(self, checkpoint: Checkpoint | None):
        self._checkpoint = checkpoint
        self.written()

    def written(self) -> None:
        """Count from now."""
        # Never the time of day: that clock jumps.
        self._since, self._batches = time.monotonic(), 0

    def due(self) -> bool:
        """Count one batch.

        Returns:
            Whether it is time.
        """
        self._batches += 1
        if self._checkpoint is None:
            return False
        enough = self._checkpoint.batches
        late = time.monotonic() - self._since >= 60 * self._checkpoint.minutes
        return late or (enough is not None and self._batches >= enough)
