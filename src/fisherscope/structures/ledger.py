"""The table example x parameter tensor that every interval is computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fisherscope.errors import IdentityError, ParameterError

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Ledger:
    """Squared score norms of every example and parameter tensor.

    Rows are put in the order of ids (shorter ids first, so ``"2"`` precedes ``"10"``)
    whatever order they are given in: whatever is computed from a ledger then doesn't
    depend on how the examples were batched or in which order estimates were added.

    Attributes:
        ids: Example ids, unique, length N.
        tensors: Parameter names, length P.
        squares: float64 ``[N, P]``, squared score norms summed over the example's units,
            mean over draws.
        tokens: int64 ``[N]``, supervised tokens of each example.
        draw_variance: float64 ``[N, P]``, unbiased variance over draws of a single draw's
            entry of ``squares``; ``None`` unless labels were drawn at least twice.
        draw_variance_total: float64 ``[N]``, the same for the sum over all tensors, which
            the per-tensor variances don't determine because one drawn label moves all
            tensors together. ``None`` if it was not recorded.
        groups: int64 ``[N]``, which rows are not independent: those of a batch for
            ``unit="batch"``, whose one number is spread evenly over its examples, and the
            visits of one example along a training run. ``None`` if every row is.
    """

    ids: tuple[str, ...]
    tensors: tuple[str, ...]
    squares: np.ndarray
    tokens: np.ndarray
    draw_variance: np.ndarray | None = None
    draw_variance_total: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            twice = sorted(id for id, count in Counter(self.ids).items() if count > 1)
            raise IdentityError(
                f"example ids must be unique, but {_some(twice)} occur more than once. "
                "Give every example its own id."
            )
        order = sorted(range(len(self.ids)), key=lambda i: (len(self.ids[i]), self.ids[i]))
        n, p = len(self.ids), len(self.tensors)
        for name, shape in (
            ("squares", (n, p)),
            ("tokens", (n,)),
            ("draw_variance", (n, p)),
            ("draw_variance_total", (n,)),
            ("groups", (n,)),
        ):
            if (values := getattr(self, name)) is None:
                continue
            array = np.asarray(values, np.int64 if name in {"tokens", "groups"} else np.float64)
            if array.shape != shape:
                raise ParameterError(
                    f"ledger.{name} has shape {array.shape}, but {n} examples and {p} tensors "
                    f"need {shape}."
                )
            object.__setattr__(self, name, array[order])
        object.__setattr__(self, "ids", tuple(self.ids[i] for i in order))
        object.__setattr__(self, "tensors", tuple(self.tensors))

    def __len__(self) -> int:
        return len(self.ids)

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """Sums over examples that share one independent number.

        Args:
            values: One row per example.

        Returns:
            One row per group; ``values`` itself if every example has its own.
        """
        if self.groups is None:
            return values
        _, place = np.unique(self.groups, return_inverse=True)
        sums = np.zeros((place.max(initial=-1) + 1, *values.shape[1:]))
        np.add.at(sums, place, values)
        return sums

    def frame(self) -> pd.DataFrame:
        """The squared score norms as a table.

        Returns:
            Example ids as index, parameter names as columns.
        """
        index = pd.Index(self.ids, name="example", dtype=object)
        return pd.DataFrame(self.squares, index=index, columns=list(self.tensors), copy=True)

    def __add__(self, other: Ledger) -> Ledger:
        """The rows of both ledgers.

        Args:
            other: A ledger over the same tensors and over other examples.

        Returns:
            A new ledger; variances over draws are kept when both have them.

        Raises:
            IdentityError: If the tensors differ, or if examples occur in both.
        """
        if self.tensors != other.tensors:
            differing = sorted(set(self.tensors) ^ set(other.tensors)) or ["their order"]
            raise IdentityError(
                f"the ledgers are about different tensors: {_some(differing)}. "
                "Estimate both with the same parameters."
            )
        check_disjoint(self.ids, other.ids)
        return Ledger(
            ids=self.ids + other.ids,
            tensors=self.tensors,
            squares=np.concatenate([self.squares, other.squares]),
            tokens=np.concatenate([self.tokens, other.tokens]),
            draw_variance=_concatenate(self.draw_variance, other.draw_variance),
            draw_variance_total=_concatenate(self.draw_variance_total, other.draw_variance_total),
            groups=self._groups_with(other),
        )

    def take(self, ids: Sequence[str]) -> Ledger:
        """The rows of some examples.

        Args:
            ids: Ids of examples in this ledger, each once.

        Returns:
            A new ledger with those rows.

        Raises:
            IdentityError: If an id is not in this ledger.
        """
        place = {id: row for row, id in enumerate(self.ids)}
        if unknown := [id for id in ids if id not in place]:
            raise IdentityError(
                f"the ledger has no examples {_some(unknown)}; its ids begin with "
                f"{_some(self.ids)}."
            )
        rows = [place[id] for id in ids]
        return Ledger(
            ids=tuple(ids),
            tensors=self.tensors,
            squares=self.squares[rows],
            tokens=self.tokens[rows],
            draw_variance=None if self.draw_variance is None else self.draw_variance[rows],
            draw_variance_total=(
                None if self.draw_variance_total is None else self.draw_variance_total[rows]
            ),
            groups=None if self.groups is None else self.groups[rows],
        )

    def _groups_with(self, other: Ledger) -> np.ndarray | None:
        if self.groups is None and other.groups is None:
            return None
        mine, theirs = (
            np.arange(len(each)) if each.groups is None else each.groups for each in (self, other)
        )
        return np.concatenate([mine, theirs + mine.max(initial=-1) + 1])


def check_disjoint(mine: Sequence[str], theirs: Sequence[str]) -> None:
    """Make sure that no example is counted twice.

    Args:
        mine: Example ids of one estimate.
        theirs: Example ids of another.

    Raises:
        IdentityError: If ids occur in both; the message names some of them.
    """
    if shared := sorted(set(mine) & set(theirs), key=lambda id: (len(id), id)):
        raise IdentityError(
            f"{len(shared)} example ids occur in both estimates ({_some(shared)}); adding would "
            "count them twice. Estimate on disjoint data. If they are meant to count twice, or are "
            "different examples under one name, give every example an id of its own over both "
            'data sets: a column "id" of the batches, a field "id" of the JSONL rows, or '
            "Example(id, ...)."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _concatenate(mine: np.ndarray | None, theirs: np.ndarray | None) -> np.ndarray | None:
    return None if mine is None or theirs is None else np.concatenate([mine, theirs])
