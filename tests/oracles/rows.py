"""Rows of data, and the batches that a user would make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisherscope.data import Example

# Of a real token, so that padding which is not ignored shows.
PAD = 5


@dataclass(frozen=True, eq=False)
class Row:
    """One example without padding and without a batch dimension."""

    id: str
    inputs: dict[str, Tensor]
    labels: Tensor


def text(
    lengths: Sequence[int] = (7, 4, 9, 5, 6), *, vocabulary: int = 40, seed: int = 0
) -> list[Row]:
    """Token sequences; ids repeat within a row, some labels are masked."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        few = torch.randint(0, vocabulary, (max(2, length // 2),), generator=g)
        ids = few[torch.randint(0, len(few), (length,), generator=g)]
        ids[length // 2] = torch.randint(0, vocabulary, (), generator=g)
        labels = ids.clone()
        if number % 2:
            labels[: length // 3] = -100  # a prompt
        if number % 3 == 2:
            labels[length // 2] = -100  # a hole
        rows.append(Row(f"row-{number}", {"input_ids": ids}, labels))
    return rows


def cloze(lengths: Sequence[int] = (7, 4, 9, 5, 6), *, vocabulary: int = 40) -> list[Row]:
    """Masked language modelling: a few supervised positions per row, the last among them."""
    g = torch.Generator().manual_seed(1)
    rows = []
    for row in text(lengths, vocabulary=vocabulary, seed=1):
        ids = row.inputs["input_ids"]
        chosen = torch.rand(len(ids), generator=g) < 0.3
        chosen[-1] = chosen[0] = True
        labels = torch.where(chosen, torch.randint(0, vocabulary, ids.shape, generator=g), -100)
        rows.append(Row(row.id, row.inputs, labels))
    return rows


def labelled_text(classes: int = 3, **kwargs: Any) -> list[Row]:
    """Token sequences with one class each."""
    return [
        Row(row.id, row.inputs, torch.tensor(number % classes))
        for number, row in enumerate(text(**kwargs))
    ]


def points(
    n: int,
    shape: tuple[int, ...],
    *,
    classes: int = 0,
    targets: int = 0,
    seed: int = 0,
    name: str = "0",
) -> list[Row]:
    """Gaussian inputs with a class or with real targets."""
    g = torch.Generator().manual_seed(seed)
    return [
        Row(
            f"row-{number}",
            {name: torch.randn(shape, generator=g)},
            torch.tensor(number % classes) if classes else torch.randn(targets, generator=g),
        )
        for number in range(n)
    ]


def ids(n: int, length: int, vocabulary: int, *, classes: int) -> list[Row]:
    """Positional sequences of ids of one length."""
    g = torch.Generator().manual_seed(6)
    return [
        Row(
            f"row-{number}",
            {"0": torch.randint(0, vocabulary, (length,), generator=g)},
            torch.tensor(number % classes),
        )
        for number in range(n)
    ]


def examples(rows: Sequence[Row]) -> list[Example]:
    return [Example(row.id, row.inputs, row.labels) for row in rows]


def _pad(x: Tensor, length: int, fill: int, left: bool) -> Tensor:
    padding = torch.full((length - len(x),), fill, dtype=x.dtype)
    return torch.cat([padding, x] if left else [x, padding])


def padded(rows: Sequence[Row], *, left: bool, extra: int = 0) -> dict[str, Any]:
    """One batch as a tokenizer makes it."""
    longest = max(len(row.inputs["input_ids"]) for row in rows) + extra
    ids = [row.inputs["input_ids"] for row in rows]
    tokenwise = rows[0].labels.ndim == 1
    return {
        "id": [row.id for row in rows],
        "input_ids": torch.stack([_pad(x, longest, PAD, left) for x in ids]),
        "attention_mask": torch.stack([_pad(torch.ones_like(x), longest, 0, left) for x in ids]),
        "labels": torch.stack([
            _pad(row.labels, longest, -100, left) if tokenwise else row.labels for row in rows
        ]),
    }


def unpadded(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A loader with one row per batch."""
    return [
        {
            "id": [row.id],
            **{name: value[None] for name, value in row.inputs.items()},
            "labels": row.labels[None],
        }
        for row in rows
    ]


LAYOUTS = {
    "right": lambda rows: padded(rows, left=False, extra=2),
    "left": lambda rows: padded(rows, left=True, extra=2),
    "unpadded": unpadded,
}
