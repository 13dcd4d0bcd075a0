"""Each task's Fisher, estimated once and found again by whoever asks for the same."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import nn

from fisherscope.data import Example
from fisherscope.defaults import FisherConfig
from fisherscope.distributed import Ranks
from fisherscope.errors import IdentityError, StoreError
from fisherscope.estimation import estimate, identity
from fisherscope.metrics.footprint import Footprint
from fisherscope.partition import Budget
from fisherscope.planning import Plan
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


def estimate_options(config: FisherConfig) -> dict[str, Any]:
    """The settings of an analysis as options of :func:`fisherscope.estimate` and ``plan``.

    Args:
        config: The settings.

    Returns:
        Keyword arguments. ``halves`` is always kept, since ceilings and bands need them;
        ``max_examples`` has been applied when the examples were read.
    """
    left = {"ema_decay", "max_examples", "halves"}
    names = [field.name for field in dataclasses.fields(config) if field.name not in left]
    return {name: getattr(config, name) for name in names} | {"halves": True}


def check_store(
    model: nn.Module,
    tasks: Mapping[str, Sequence[Example]],
    config: FisherConfig,
    store: FisherStore,
    *,
    whole: bool = False,
) -> None:
    """Make sure that what is stored already belongs to this analysis.

    Args:
        model: The model.
        tasks: Key in the store to examples.
        config: How the Fishers are estimated.
        store: Where they go.
        whole: Whether all that is stored must be of this model, also other tasks. Default:
            ``False``, only these keys are looked at.

    Raises:
        StoreError: If a stored Fisher is of another model, other data or other settings;
            the message names what differs.
    """
    for name in store if whole else [name for name in tasks if name in store]:
        known = name in tasks
        mine = identity(
            model,
            tasks[name] if known else next(iter(tasks.values())),
            **estimate_options(config),
        )
        # A task that is not asked for is of other data, but must be of the same model.
        ignore = ("version",) if known else ("version", "data_fingerprint")
        differing = _differing(store[name].identity, mine, ignore)
        if differing:
            place, out = (store.path, "--out") if store.path else ("the store", "store")
            raise StoreError(
                f"{place} holds task {name!r} of another run: {'; '.join(differing)}. Choose "
                f"another {out}, or delete that task to start again."
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
    model: nn.Module,
    tasks: Mapping[str, Sequence[Example]],
    config: FisherConfig,
    store: FisherStore,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    plans: Mapping[str, Plan] | None = None,
    budget: Budget | None = None,
) -> dict[str, Estimated]:
    """Estimate what the store does not hold yet.

    Args:
        model: The model.
        tasks: Key in the store to examples; :func:`check_store` has accepted them.
        config: How the Fishers are estimated.
        store: Each Fisher is put there as soon as it is complete; the state of an
            unfinished one is kept beside them until then.
        progress: Whether progress bars are shown.
        say: Called with a line of text at the beginning of each task, and with what it took
            at the end.
        plans: Key to plan, to set beside what each task took. Default: ``None``.
        budget: The memory for sums. Default: ``None``, no limit.

    Returns:
        Key to Fisher, in the order of the tasks; of several processes, the first one has them.
    """
    ranks = Ranks()
    done: dict[str, Estimated] = {}
    for number, (name, examples) in enumerate(tasks.items(), start=1):
        found = ranks.once(lambda name=name: name in store)
        there = ": there already" if found else ""
        say(f"Fisher of {name} ({number} of {len(tasks)}){there}")
        if found:
            if ranks.first:
                done[name] = Estimated(store[name], None)
            continue
        with Footprint(model) as taken:
            fisher = _estimate(model, name, examples, config, store, progress, budget or Budget())
            ranks.once(lambda name=name, fisher=fisher: _keep(fisher, name, store))
        if ranks.first:
            done[name] = Estimated(store[name], taken.seconds)
        if plans is not None and name in plans:
            # Pages of files are the system's to take, but count as the process's.
            mapped = budget is not None and budget.folder is not None and budget.limit is None
            size = None if mapped else taken.bytes
            say(f"Fisher of {name} took {plans[name].beside(taken.seconds, size)}")
    return done


def _estimate(
    model: nn.Module,
    name: str,
    examples: Sequence[Example],
    config: FisherConfig,
    store: FisherStore,
    progress: bool,
    budget: Budget,
) -> Fisher:
    unfinished = _unfinished(name, store)
    try:
        return estimate(
            model,
            examples,
            progress=progress,
            checkpoint=unfinished,
            memory_limit=budget.limit,
            offload_folder=budget.folder,
            **estimate_options(config),
        )
    except IdentityError as error:
        if unfinished is None:
            raise
        raise StoreError(
            f"{unfinished} is what an interrupted run left of task {name!r}, and it cannot go on: "
            f"{error} Or choose another --out, or delete that folder to start the task again."
        ) from error


def _unfinished(name: str, store: FisherStore) -> Path | None:
    return None if store.path is None else store.path / UNFINISHED / quote(name, safe="")


def _keep(fisher: Fisher, name: str, store: FisherStore) -> None:
    store[name] = fisher
    unfinished = _unfinished(name, store)
    if unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may still be unfinished
            unfinished.parent.rmdir()
