"""Both averages along a training run, whose weights change and whose examples come again."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fisherscope.structures.ema import FisherEMA
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.ledger import Ledger

_RUN = "run:"
_VISIT = re.compile(r"#\d+$")


def pool(so_far: Fisher, fisher: Fisher) -> Fisher:
    """The mean over all visits: ``+`` without two of its demands.

    ``+`` wants one model and examples that occur once, and a training run has neither. Here
    every *visit* of an example, at the weights of that moment, is an observation. Where ``+``
    is possible the result is that of ``+``, bit by bit: batches at unchanged weights give
    what one estimate over all of them gives.

    Visits after the first are called ``"id#2"``, ``"id#3"``, ...; all visits of an example
    share one group of the ledger, so that intervals resample examples, not visits. From the
    second model on the fingerprint is ``"run:..."``, a hash of the sequence of weights: that
    of no model, and equal for two tasks that were followed along the same run.

    Args:
        so_far: The mean so far.
        fisher: One more estimate of the same kind; if more than weights and data differ,
            ``IdentityError`` names it.

    Returns:
        A new Fisher. It has no halves if an example came again, which may be in both of them.
    """
    model = _sequence(so_far.identity.model_fingerprint, fisher.identity.model_fingerprint)
    known = {*so_far.ledger.ids, *so_far.skipped}
    again = not known.isdisjoint(fisher.ledger.ids + fisher.skipped)
    if again:
        names = _visits(fisher.ledger.ids + fisher.skipped, known)
        fisher = replace(
            fisher,
            ledger=replace(fisher.ledger, ids=names[: len(fisher.ledger)]),
            skipped=names[len(fisher.ledger) :],
            halves=None,
        )
    found = _at(so_far, model) + _at(fisher, model)
    return replace(found, ledger=_by_example(found.ledger)) if again else found


def recent(ema: FisherEMA, mean: Fisher) -> Fisher:
    """A moving average as a Fisher, for whatever takes one.

    Args:
        ema: The moving average.
        mean: The plain mean over the same visits, as :func:`pool` makes it.

    Returns:
        A Fisher with the average's numbers and the counts of all visits. How uncertain an
        average with fading weights is, nothing that is kept can tell: its ledger, and with it
        every standard error and interval, is NaN.
    """
    count = mean.denominator()
    return replace(
        mean,
        sums={name: tensor * count for name, tensor in ema.average.items()},
        ledger=replace(
            mean.ledger,
            squares=np.full_like(mean.ledger.squares, np.nan),
            draw_variance=None,
            draw_variance_total=None,
        ),
        halves=None,
    )


def of_run(fisher: Fisher) -> bool:
    """Whether a Fisher was followed along a run, so that it is that of no single model.

    Args:
        fisher: Any Fisher.

    Returns:
        Whether :func:`pool` has seen more than one model.
    """
    return fisher.identity.model_fingerprint.startswith(_RUN)


def _sequence(mine: str, theirs: str) -> str:
    if mine == theirs:
        return mine
    return _RUN + hashlib.blake2b(f"{mine} {theirs}".encode(), digest_size=16).hexdigest()


def _at(fisher: Fisher, model: str) -> Fisher:
    halves = fisher.halves and tuple(_at(half, model) for half in fisher.halves)
    return replace(
        fisher, identity=replace(fisher.identity, model_fingerprint=model), halves=halves
    )


def _visits(ids: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    taken = known.union(ids)
    names = []
    for id in ids:
        name, visit = id, 1
        while id in known and name in taken:
            visit += 1
            name = f"{id}#{visit}"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _by_example(ledger: Ledger) -> Ledger:
    # Rows of one example, or with one number for a whole batch, hang together.
    n = len(ledger)
    examples = np.unique([_VISIT.sub("", id) for id in ledger.ids], return_inverse=True)[1]
    groups = np.arange(n) if ledger.groups is None else ledger.groups
    nodes = np.concatenate([n + examples, 2 * n + groups])
    size = int(nodes.max(initial=0)) + 1
    links = coo_array((np.ones(2 * n, np.int8), (np.tile(np.arange(n), 2), nodes)), (size, size))
    return replace(ledger, groups=connected_components(links, directed=False)[1][:n])
