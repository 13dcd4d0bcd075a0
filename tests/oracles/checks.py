"""A Fisher against the cached brute-force reference of its case."""

from __future__ import annotations

from typing import Any

import torch

import fisherscope as fs
from oracles import brute, models

BOUND = 1e-5
SLOW = "one example at a time through autograd"


def vanishes(case: models.Case, unit: str = "example"):
    """Single positions of a key bias have scores; only their sum over positions vanishes."""
    return lambda name: case.vanishes(name) and (unit != "position" or case.is_whole(name))


def slow(fisher: fs.Fisher) -> set[str]:
    return {name for name, rule in fisher.coverage.items() if rule.startswith(SLOW)}


def check(fisher: fs.Fisher, name: str, *, covered: bool = True) -> None:
    """Sums at 1e-5 per tensor; the slow path for what needs it and for nothing else.

    Args:
        fisher: Over all rows of the case, with data labels.
        name: Of the case.
        covered: ``False`` where the path does not matter.
    """
    case, unit = models.case(name), fisher.identity.unit
    expected = brute.reference(name, unit)[0]
    assert set(fisher.sums) <= set(expected)
    expected = {n: e for n, e in expected.items() if n in fisher.sums}
    if fisher.identity.structure == "grouped":
        expected = brute.rows_summed(case.model, expected)
    compare(fisher.sums, expected, vanishes(case, unit))
    if covered:
        assert slow(fisher) == {n for n in expected if case.is_whole(n)}


def compare(found: brute.Tensors, expected: brute.Tensors, *args: Any, **kwargs: Any) -> None:
    error, where = brute.worst(found, expected, *args, **kwargs)
    assert error <= BOUND, f"{where}: relative error {error:.1e}"


def check_ledger(fisher: fs.Fisher, name: str) -> None:
    """Squared norms at 1e-5 of each tensor's over all rows, every one on its own example."""
    case = models.case(name)
    frame = fisher.ledger.frame().loc[[row.id for row in case.rows]]
    norms = brute.reference(name, fisher.identity.unit)[1]
    found = {n: torch.from_numpy(frame[n].to_numpy().copy()) for n in norms}
    compare(found, norms, vanishes(case, fisher.identity.unit))
