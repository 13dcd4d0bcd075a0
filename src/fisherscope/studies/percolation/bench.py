"""Every state of the weights that was looked at, once: measured, kept, and taken up again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from fisherscope.interruption import Noted, whole_batches
from fisherscope.studies.kept import Kept
from fisherscope.studies.percolation.orders import Ordering
from fisherscope.studies.percolation.removal import Removal, replaced, without
from fisherscope.studies.percolation.units import Units
from fisherscope.studies.percolation.watch import Measured, Watch

FILE = "evaluations.jsonl"
INTACT = "intact"


@dataclass(frozen=True)
class Change:
    """How chosen weights are changed.

    Attributes:
        removal: ``"zero"``, ``"mean"`` or ``"noise"``.
        norm: Length of the noise; 0 for the others.
        draw: Number of the noise.
    """

    removal: Removal = "zero"
    norm: float = 0.0
    draw: int = 0

    def __str__(self) -> str:
        return f"{self.removal}:{self.norm!r}:{self.draw}" if self.norm else self.removal


class Bench:
    """Measures the tasks at changed weights; the model is intact between any two measurements.

    Args:
        parameters: Name to parameter, of those that may change.
        watch: The tasks.
        seed: Keys the noise.
        folder: Where measurements are kept, or ``None``.
        identity: What they depend on; those of another identity are refused.
        progress: Show a bar.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        watch: Watch,
        *,
        seed: int = 0,
        folder: Path | None = None,
        identity: str = "",
        progress: bool = False,
    ):
        self.parameters = dict(parameters)
        self.watch = watch
        self.seed = seed
        self._known: dict[str, Measured] = {INTACT: dict(watch.intact)}
        self._kept = Kept(None if folder is None else folder / FILE, identity, _read)
        for key, tasks in self._kept.rows:
            self._known.setdefault(key, {}).update(tasks)
        self._progress, self._bar = progress, tqdm(disable=True)
        self._interrupted = Noted()

    @contextlib.contextmanager
    def running(self, total: int) -> Generator[None]:
        """Show progress, and let Ctrl-C wait for the end of a measurement.

        Args:
            total: Expected number of measurements.

        Yields:
            Nothing.
        """
        with (
            whole_batches(True) as self._interrupted,
            tqdm(
                total=total,
                initial=len(self._known) - 1,  # of an earlier run, without the intact model
                desc="percolation",
                unit="evaluation",
                disable=not self._progress,
            ) as self._bar,
        ):
            yield

    def after(
        self,
        ordering: Ordering,
        removed: int,
        units: Units,
        change: Change,
        on: Collection[str],
    ) -> Measured:
        """Some tasks after the first units of an ordering were changed.

        Args:
            ordering: The ordering.
            removed: How many units.
            units: The units.
            change: What is done to them.
            on: The tasks that are asked for.

        Returns:
            The sums of each of their examples.
        """
        key = INTACT
        if removed:
            which = json.dumps([ordering.order, ordering.by, ordering.repetition, removed])
            # All units at once are the same in every order.
            key = f"{units.level}|{change}|{'all' if removed == ordering.count else which}"
        return self._measure(key, lambda: ordering.first(removed), change, on)

    def without_unit(
        self, units: Units, unit: int, change: Change, on: Collection[str]
    ) -> Measured:
        """Some tasks after a single unit was changed.

        Args:
            units: The units.
            unit: Its number.
            change: What is done to it.
            on: The tasks that are asked for.

        Returns:
            The sums of each of their examples.
        """
        key = f"{units.level}|{change}|unit|{unit}"
        return self._measure(key, lambda: units.only(unit), change, on)

    def _measure(
        self,
        key: str,
        gone: Callable[[], dict[str, Tensor]],
        change: Change,
        on: Collection[str],
    ) -> Measured:
        known = self._known.setdefault(key, {})
        missing = [name for name in on if name not in known]
        if not missing:
            return known
        self._interrupted.obey()
        values = without(
            self.parameters,
            gone(),
            change.removal,
            norm=change.norm,
            seed=hash_seed(self.seed, change.draw),
        )
        with replaced(self.parameters, values):
            found = self.watch.evaluate(missing)
        known.update(found)
        self._kept.add({"key": key, "tasks": {name: v.tolist() for name, v in found.items()}})
        self._bar.update()
        self._interrupted.obey()
        return known


def _read(row: Mapping[str, Any]) -> tuple[str, Measured]:
    return str(row["key"]), {name: np.array(sums, float) for name, sums in row["tasks"].items()}


def hash_seed(seed: int, draw: int) -> int:
    """A seed for each draw of noise.

    Args:
        seed: The study's.
        draw: Number of the draw.

    Returns:
        A non-negative integer below 2⁶³.
    """
    return int(np.random.SeedSequence((seed, draw)).generate_state(1, np.uint64)[0] >> 1)
