"""Whatever holds data becomes a list of examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fisherscope.data.examples import Example, is_count
from fisherscope.data.identity import content_id
from fisherscope.errors import DataError, ParameterError

LABEL_KEYS = ("labels", "label", "label_ids")
ID_KEYS = ("id", "example_id")
SHAPES = (
    "pass a dict or BatchEncoding of tensors, an (inputs, labels) tuple, a tensor, a list of "
    "Example, or an iterable (DataLoader) of any of these"
)


def examples(data: Any, *, max_examples: int | None = None) -> list[Example]:
    """Turn any batch, or any iterable of batches, into examples.

    A row whose attention mask is one contiguous run of ones is cut to that run, and the
    mask is dropped: on which side and how far a batch was padded leaves no trace. Any
    other mask stays as it is. The key ``labels`` (or ``label``, ``label_ids``) becomes the
    labels, ``id`` or ``example_id`` the ids. An example without one is named after its content
    (:func:`fisherscope.data.content_id`), so its name does not depend on the order of the data;
    exact copies of it are numbered ``"…-2"``, ``"…-3"``.

    Args:
        data: A list of examples (returned as it is), a dict or BatchEncoding (one padded
            batch, or one row if ``input_ids`` has no batch dimension), a tuple
            ``(inputs, labels)`` with a tensor, a dict or a tuple of tensors as inputs, a
            tensor, or an iterable of any of these.
        max_examples: Stop after so many examples; ``None`` takes all.

    Returns:
        The examples in the order of the data, on the CPU.

    Raises:
        DataError: If the data is empty or of no known kind, if its parts differ in their
            number of rows, if two examples have the same id, or if a row is all padding.
        ParameterError: If ``max_examples`` is not a positive integer.
    """
    if not (max_examples is None or is_count(max_examples)):
        raise ParameterError(f"max_examples={max_examples!r}: pass a positive integer or None")
    found: list[Example] = []
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    for example in _walk(data):
        named = example if example.id else _named(example, copies)
        if named.id in seen:
            raise DataError(
                f"two examples have the id {named.id!r} (the second is row {len(found)}): ids "
                "key the sampled labels and the ledger, so give every example its own"
            )
        seen.add(named.id)
        found.append(named)
        if len(found) == max_examples:
            break
    if not found:
        raise DataError(f"the data is empty (or an iterator that was used before): {SHAPES}")
    return found


def _named(example: Example, copies: Counter[str]) -> Example:
    name = content_id(example)
    copies[name] += 1
    # Copies are alike in everything, so it does not matter which of them gets which number.
    number = f"-{copies[name]}" if copies[name] > 1 else ""
    return replace(example, id=name + number)


def _walk(data: Any) -> Iterator[Example]:
    if isinstance(data, (list, tuple)) and data and all(isinstance(e, Example) for e in data):
        yield from data
    elif isinstance(data, (Example, Mapping, torch.Tensor, np.ndarray, tuple)):
        yield from _rows(data)
    elif not isinstance(data, Iterable) and {"__getitem__", "__len__"} <= set(dir(data)):
        # A map-style data set: iter() would go on until an IndexError that may never come.
        for index in range(len(data)):
            yield from _rows(data[index])
    elif isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        hint = "; read a JSONL file with read_jsonl(path, tokenizer)" * isinstance(data, str)
        raise DataError(f"cannot read examples from {type(data).__name__}: {SHAPES}{hint}")
    else:
        if isinstance(data, list) and _looks_like_a_pair(data):
            raise DataError(
                "a list of two tensors of different kinds: for (inputs, labels) pass a tuple; "
                "a list is read as a list of batches"
            )
        for batch in data:
            yield from _rows(batch)


def _looks_like_a_pair(data: list[Any]) -> bool:
    if len(data) != 2 or not all(isinstance(part, torch.Tensor) for part in data):
        return False
    return data[0].dtype != data[1].dtype or data[0].shape[1:] != data[1].shape[1:]


def _rows(batch: Any) -> Iterator[Example]:
    # An id is left empty where the data has none: only the caller knows of other copies.
    if isinstance(batch, Example):
        yield batch
        return
    inputs, labels = batch, None
    # A DataLoader over a TensorDataset hands out lists where the data set had tuples.
    if isinstance(batch, (tuple, list)):
        if len(batch) not in {1, 2}:
            raise DataError(
                f"a {type(batch).__name__} of {len(batch)} parts: pass (inputs, labels), and "
                "several inputs as ((first, second), labels)"
            )
        inputs, labels = batch[0], (batch[1] if len(batch) == 2 else None)
    columns = _columns(inputs)
    ids = _take(columns, ID_KEYS)
    own_labels = _take(columns, LABEL_KEYS)
    if labels is not None and own_labels is not None:
        raise DataError("labels both inside the inputs and beside them: pass them once")
    labels = own_labels if labels is None else labels
    if not columns:
        raise DataError(f"a batch without inputs: {SHAPES}")
    if _is_one_row(columns, labels):
        columns = {name: [value] for name, value in columns.items()}
        labels = None if labels is None else [labels]
        ids = None if ids is None else [ids]
    yield from _split(columns, labels, ids)


def _columns(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return {str(name): value for name, value in inputs.items() if value is not None}
    if _is_array(inputs):
        return {"0": inputs}
    if isinstance(inputs, (tuple, list)) and inputs and all(map(_is_array, inputs)):
        return {str(i): part for i, part in enumerate(inputs)}
    raise DataError(f"cannot read inputs from {type(inputs).__name__}: {SHAPES}")


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray))


def _take(columns: dict[str, Any], keys: tuple[str, ...]) -> Any:
    present = [key for key in keys if key in columns]
    if len(present) > 1:
        raise DataError(f"{present[0]!r} and {present[1]!r} mean the same: keep one of them")
    return columns.pop(present[0]) if present else None


def _is_one_row(columns: dict[str, Any], labels: Any) -> bool:
    # The rows of a data set, unlike the batches of a loader, have no batch dimension.
    if "input_ids" in columns:
        return _depth(columns["input_ids"]) == 1
    return labels is not None and _depth(labels) == 0


def _depth(value: Any) -> int:
    if hasattr(value, "ndim"):
        return int(value.ndim)
    if isinstance(value, (list, tuple)):
        return 1 + (_depth(value[0]) if value else 0)
    return 0


def _split(columns: dict[str, Any], labels: Any, ids: Any) -> Iterator[Example]:
    every = columns | {"labels": labels, "id": ids}
    counts = {n: _count(n, value) for n, value in every.items() if value is not None}
    if len(set(counts.values())) > 1:
        raise DataError(f"the parts of a batch differ in their number of rows: {counts}")
    for row in range(next(iter(counts.values()))):
        inputs = {name: _tensor(name, value[row], row) for name, value in columns.items()}
        label = None if labels is None else _tensor("labels", labels[row], row)
        if label is not None and not (label.is_floating_point() or label.is_complex()):
            label = label.long()
        yield _cut(Example("" if ids is None else _id(ids[row], row), inputs, label), row)


def _count(name: str, value: Any) -> int:
    if _depth(value) == 0:
        raise DataError(
            f"{name!r} is {type(value).__name__} without a batch dimension: every part of a "
            "batch needs one row per example; remove it, or pass it to the model yourself"
        )
    return len(value)


def _tensor(name: str, value: Any, row: int) -> torch.Tensor:
    try:
        # Copies: a loader that reuses its buffer would otherwise change examples already read.
        tensor = (
            value.detach().cpu().clone() if isinstance(value, torch.Tensor) else torch.tensor(value)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name!r} of row {row} cannot become a tensor ({error}): tokenise it, or remove "
            "that column"
        ) from error
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return tensor.long() if tensor.ndim == 1 and whole else tensor


def _id(value: Any, row: int) -> str:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(f"id {value!r} of row {row}: ids are non-empty strings or integers")
    return str(value)


def _cut(example: Example, row: int) -> Example:
    if example.length == 0:
        raise DataError(f"row {row} (id {example.id or row!r}) has no tokens: drop the row")
    mask = example.inputs.get("attention_mask")
    if mask is None or mask.ndim != 1 or not bool(((mask == 0) | (mask == 1)).all()):
        return example
    real = mask.nonzero().flatten()
    if not len(real):
        raise DataError(
            f"row {row} (id {example.id or row!r}) is all padding: its attention_mask has no 1; "
            "drop the row"
        )
    start, stop = int(real[0]), int(real[-1]) + 1
    if stop - start != len(real):
        return example

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        aligned = tensor.ndim > 0 and tensor.shape[0] == len(mask)
        return tensor[start:stop].clone() if aligned else tensor

    inputs = {n: cut(t) for n, t in example.inputs.items() if n != "attention_mask"}
    labels = example.labels
    # Float labels are regression targets: K of them may equal the length by chance only.
    if labels is not None and not labels.is_floating_point():
        labels = cut(labels)
    return Example(example.id, inputs, labels)
