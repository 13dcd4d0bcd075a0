"""Fishers made from explicit score vectors, so that every number has a dense oracle."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fisherscope.structures import DiagonalFisher, Fisher, GroupedFisher, Identity, Ledger

SHAPES = {"a.weight": (3, 4), "a.bias": (3,), "square.weight": (4, 4)}
# Which dimension of a weight is summed over; the square one is stored transposed.
SUMMED = {"a.weight": 1, "square.weight": 0}


@dataclass(frozen=True)
class Scores:
    """Per-example squared scores; ``squares[name]`` is [N, draws, *shape]."""

    ids: tuple[str, ...]
    squares: dict[str, Tensor]
    tokens: np.ndarray

    def take(self, rows: slice | list[int]) -> Scores:
        ids = tuple(np.asarray(self.ids, dtype=object)[rows])
        return Scores(ids, {name: s[rows] for name, s in self.squares.items()}, self.tokens[rows])


def scores(ids, *, seed=0, draws=1, shapes=SHAPES) -> Scores:
    g = torch.Generator().manual_seed(seed)
    n = len(ids)
    # float64 sums of squares of a common factor per draw and example, so that draws of one
    # example move all tensors together, as drawn labels do.
    common = torch.rand(n, draws, generator=g, dtype=torch.float64) + 0.1
    squares = {
        name: (torch.randn(n, draws, *shape, generator=g, dtype=torch.float64)).square()
        * common.reshape(n, draws, *[1] * len(shape))
        for name, shape in shapes.items()
    }
    tokens = torch.randint(1, 9, (n,), generator=g).numpy()
    return Scores(tuple(ids), squares, tokens)


def build(
    of: Scores,
    *,
    structure="diagonal",
    unit="example",
    fisher_type="empirical",
    halves=None,
    dtype=torch.float32,
    skipped=(),
    total_variance=True,
    **identity,
) -> Fisher:
    """``halves``: two lists of row numbers."""
    draws = next(iter(of.squares.values())).shape[1]
    norms = {n: s.flatten(2).sum(2) for n, s in of.squares.items()}
    stacked = torch.stack(list(norms.values()), -1).numpy()  # [N, draws, P]
    sums = {name: s.sum((0, 1)) for name, s in of.squares.items()}
    if structure == "grouped":
        sums = {
            name: s.sum(SUMMED[name], keepdim=True) if name in SUMMED else s
            for name, s in sums.items()
        }
    fields = {
        "fisher_type": fisher_type,
        "unit": unit,
        "structure": structure,
        "likelihood": "causal-lm",
        "draws": draws,
        "seed": 0,
        "parameters": {name: tuple(s.shape[2:]) for name, s in of.squares.items()},
        "model_fingerprint": "m",
        "data_fingerprint": f"{sum(zlib.crc32(i.encode()) << 90 for i in of.ids) % 2**128:032x}",
        "dtype": "float32",
        "version": "0.1.0",
    }
    drawn = draws > 1
    return {"diagonal": DiagonalFisher, "grouped": GroupedFisher}[structure](
        identity=Identity(**{**fields, **identity}),
        sums={name: s.to(dtype) for name, s in sums.items()},
        ledger=Ledger(
            ids=of.ids,
            tensors=tuple(of.squares),
            squares=stacked.mean(1),
            tokens=of.tokens,
            draw_variance=stacked.var(1, ddof=1) if drawn else None,
            draw_variance_total=(
                stacked.sum(2).var(1, ddof=1) if drawn and total_variance else None
            ),
        ),
        coverage={name: "linear" for name in of.squares},
        n_units=int(of.tokens.sum()) if unit != "example" else len(of.ids),
        halves=None
        if halves is None
        else tuple(
            build(
                of.take(rows),
                structure=structure,
                unit=unit,
                fisher_type=fisher_type,
                dtype=dtype,
                **identity,
            )
            for rows in halves
        ),
        skipped=tuple(skipped),
    )


def same_bits(a: Fisher, b: Fisher) -> bool:
    """Equal in class, fields and every bit of every number."""
    arrays = ("squares", "tokens", "draw_variance", "draw_variance_total")
    return (
        type(a) is type(b)
        and a.identity == b.identity
        and list(a.identity.parameters) == list(b.identity.parameters)
        and (set if a.layout else list)(a.sums) == (set if b.layout else list)(b.sums)
        and a.layout == b.layout
        and all(
            a.sums[n].dtype == b.sums[n].dtype and torch.equal(a.sums[n], b.sums[n]) for n in a.sums
        )
        and (a.ledger.ids, a.ledger.tensors) == (b.ledger.ids, b.ledger.tensors)
        and all(_equal(getattr(a.ledger, k), getattr(b.ledger, k)) for k in arrays)
        and (a.coverage, a.n_units, a.skipped) == (b.coverage, b.n_units, b.skipped)
        and (a.halves is None) == (b.halves is None)
        and all(same_bits(x, y) for x, y in zip(a.halves or (), b.halves or (), strict=True))
    )


def _equal(x, y) -> bool:
    if x is None or y is None:
        return x is y
    return x.dtype == y.dtype and np.array_equal(x, y)
