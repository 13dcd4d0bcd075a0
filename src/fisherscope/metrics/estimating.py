"""Each task's Fisher, estimated once and found again when the same run is started again."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote

from fisherscope.errors import IdentityError, StoreError
from fisherscope.estimation import estimate, identity
from fisherscope.metrics.preparing import PreparedRun, estimate_options
from fisherscope.store import FisherStore
from fisherscope.structures import Fisher, Identity

# Stores do not look into folders whose names begin with a dot.
UNFINISHED = ".unfinished"
_OTHER = {
    "model_fingerprint": "another model",
    "data_fingerprint": "other data: rows, max_examples, max_length or tokens have changed",
}


@dataclass(frozen=True)
class Estimated:
    """One task's Fisher.

    Attributes:
        fisher: The Fisher, with halves.
        seconds: How long it took now; ``None`` if it was there already.
    """

    fisher: Fisher
    seconds: float | None


def check_store(prepared: PreparedRun, store: FisherStore) -> None:
    """Make sure that what is stored already belongs to this run.

    Args:
        prepared: The run.
        store: Where its Fishers go.

    Raises:
        StoreError: If a stored Fisher is of another model, other data or other settings;
            the message names what differs.
    """
    for name in store:
        known = name in prepared.tasks
        mine = identity(
            prepared.model,
            prepared.tasks[name] if known else next(iter(prepared.tasks.values())),
            **estimate_options(prepared.config),
        )
        # A task that this run does not have is of other data, but must be of the same model.
        ignore = ("version",) if known else ("version", "data_fingerprint")
        differing = _differing(store[name].identity, mine, ignore)
        if differing:
            raise StoreError(
                f"{store.path} holds task {name!r} of another run: {'; '.join(differing)}. Choose "
                "another --out, or delete that folder to start again."
            )


def _differing(stored: Identity, asked: Identity, ignore: Collection[str]) -> list[str]:
    found = []
    for field in dataclasses.fields(Identity):
        before, now = getattr(stored, field.name), getattr(asked, field.name)
        if field.name in ignore or before == now:
            continue
        if field.name == "parameters":
            changed = sum(before.get(n) != now.get(n) for n in {**before, **now})
            found.append(f"{changed} of its parameters are others or of another shape")
        elif field.name.endswith("_fingerprint"):
            found.append(f"{_OTHER[field.name]} (fingerprint {before[:8]}… there, {now[:8]}… now)")
        else:
            found.append(f"{field.name} is {before!r} there and {now!r} now")
    return found


def estimate_tasks(
    prepared: PreparedRun,
    store: FisherStore,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Estimated]:
    """Estimate what the store does not hold yet.

    Args:
        prepared: The run; :func:`check_store` has accepted the store.
        store: Each Fisher is put there as soon as it is complete; the state of an
            unfinished one is kept beside them until then.
        progress: Whether progress bars are shown.
        say: Called with a line of text at the beginning of each task.

    Returns:
        Task name to Fisher, in the order of the run.
    """
    done: dict[str, Estimated] = {}
    for number, name in enumerate(prepared.tasks, start=1):
        found = name in store
        there = ": there already" if found else ""
        say(f"Fisher of {name} ({number} of {len(prepared.tasks)}){there}")
        done[name] = (
            Estimated(store[name], None) if found else _estimate(prepared, store, name, progress)
        )
    return done


def _estimate(prepared: PreparedRun, store: FisherStore, name: str, progress: bool) -> Estimated:
    start = time.perf_counter()
    unfinished = None if store.path is None else store.path / UNFINISHED / quote(name, safe="")
    try:
        fisher = estimate(
            prepared.model,
            prepared.tasks[name],
            progress=progress,
            checkpoint=unfinished,
            **estimate_options(prepared.config),
        )
    except IdentityError as error:
        raise StoreError(
            f"{unfinished} is what an interrupted run left of task {name!r}, and it cannot go on: "
            f"{error} Or choose another --out, or delete that folder to start the task again."
        ) from error
    store[name] = fisher
    if unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may still be unfinished
            unfinished.parent.rmdir()
    return Estimated(fisher, time.perf_counter() - start)
