"""Estimates of cases, models that fail on the way, and the comparison of two estimates."""

from __future__ import annotations

import numpy as np
from torch import nn

import fisherscope as fs
from oracles import models, rows


def same(a: fs.Fisher, b: fs.Fisher, *, rtol: float = 1e-5) -> None:
    """Equal but for the rounding of fp32 sums in another order."""
    assert a.ledger.ids == b.ledger.ids and a.n_units == b.n_units
    assert (a.ledger.tokens == b.ledger.tokens).all()
    np.testing.assert_allclose(a.ledger.squares, b.ledger.squares, rtol=rtol)
    if b.ledger.draw_variance is not None:
        size = b.ledger.squares**2
        assert (abs(a.ledger.draw_variance - b.ledger.draw_variance) <= 1e-4 * size + 1e-12).all()
    for name, expected in b.sums.items():
        error = float((a.sums[name] - expected).norm())
        assert error <= rtol * float(expected.norm()), name
    assert a.identity == b.identity


def estimate(case: models.Case, data: list[rows.Row], **options) -> fs.Fisher:
    return fs.estimate(case.model, rows.examples(data), progress=False, **options)


def poisoned(case: models.Case, ids: set[str], value: float = float("nan")) -> list[rows.Row]:
    return [
        rows.Row(r.id, {n: x * value for n, x in r.inputs.items()}, r.labels) if r.id in ids else r
        for r in case.rows
    ]


class Stop(Exception):
    pass


def stop_at(model: nn.Module, call: int, error: type[BaseException]) -> list[int]:
    """Raise at the given forward pass; counts the passes."""
    count = [0]

    def hook(*_: object) -> None:
        count[0] += 1
        if count[0] == call:
            raise error

    model.register_forward_hook(hook)
    return count


def passes(name: str, **options) -> int:
    """Forward passes of an estimate that is not interrupted."""
    case = models.fresh(name)
    count = stop_at(case.model, 0, Stop)
    estimate(case, case.rows, **options)
    return count[0]
