"""One example, one batch, and the way from the one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fisherscope.errors import DataError, ParameterError

IGNORED = -100
"""The label of a position that is not supervised (Hugging Face's convention)."""


# Tensors have no truth value, so the generated __eq__ would raise: compare by identity.
@dataclass(frozen=True, eq=False)
class Example:
    """One row of a batch, without padding and without the batch dimension.

    Attributes:
        id: Name of the example, unique within a data set.
        inputs: What the model is called with; positional inputs are named ``"0"``,
            ``"1"``, ...
        labels: For language models int64 of shape [T], aligned with ``input_ids`` and
            not shifted, -100 where a position is not supervised; for classification an
            int64 scalar; for regression a float scalar or a float tensor of shape [K].
            ``None`` where there are none.
    """

    id: str
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Size in tokens: of ``input_ids``, or else one per 64 input values, at least 1."""
        ids = self.inputs.get("input_ids")
        if ids is not None and ids.ndim:
            return int(ids.shape[0])
        return max(1, sum(tensor.numel() for tensor in self.inputs.values()) // 64)


@dataclass(frozen=True, eq=False)
class Batch:
    """Several examples stacked, padded on the right.

    Attributes:
        ids: Names of the examples, in the order of the rows.
        inputs: Tensors of shape [B, ...]. ``attention_mask`` is there only if the examples
            brought one or if they differ in length.
        labels: Tensor of shape [B, T] padded with -100, [B] or [B, K]; ``None`` where the
            examples have none.
    """

    ids: tuple[str, ...]
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None = None

    def to(self, device: torch.device | str | int) -> Batch:
        """Copy the tensors to a device.

        Args:
            device: Anything that ``torch.Tensor.to`` takes for a device.

        Returns:
            A batch on that device; tensors that are already there are shared.
        """
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else self.labels.to(device),
        )

    def call(self, model: Any, **extra: Any) -> Any:
        """Call a model with the inputs of this batch.

        Args:
            model: The model, or any callable.
            **extra: Further named arguments, such as ``use_cache=False``.

        Returns:
            Whatever the model returns.
        """
        positional = sorted((name for name in self.inputs if name.isdecimal()), key=int)
        named = {name: t for name, t in self.inputs.items() if not name.isdecimal()}
        return model(*(self.inputs[name] for name in positional), **named, **extra)


def collate(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Stack examples into one batch.

    Integer sequences are padded on the right: labels with -100, ``input_ids`` with the pad
    id, everything else with 0.
    Where padding was needed, an attention mask says which positions are real.

    Args:
        examples: At least one example; all with the same inputs.
        pad_id: Token id at padded positions of ``input_ids``; some models find the end of an
            example by it. Default: 0.

    Returns:
        The batch, rows in the order of the examples.

    Raises:
        DataError: If there are no examples, or if they differ in the names, the types or
            (other than by the length of an integer sequence) the shapes of their tensors.
    """
    if not examples:
        raise DataError("cannot make a batch of no examples: pass at least one")
    ids = tuple(example.id for example in examples)
    names = [name for name in examples[0].inputs if name != "attention_mask"]
    for example in examples:
        if example.inputs.keys() - {"attention_mask"} != set(names):
            raise DataError(
                f"examples {ids[0]!r} and {example.id!r} have different inputs "
                f"({sorted(names)} and {sorted(example.inputs)}): give every example the same ones"
            )
        if (example.labels is None) != (examples[0].labels is None):
            bare = ids[0] if examples[0].labels is None else example.id
            raise DataError(f"example {bare!r} has no labels but others have: label all or none")
    fills = {"input_ids": pad_id}
    inputs = {
        n: _stack(n, ids, [e.inputs[n] for e in examples], fill=fills.get(n, 0)) for n in names
    }
    mask = _mask(examples, names, ids)
    if mask is not None:
        inputs["attention_mask"] = mask
    labels = None
    if examples[0].labels is not None:
        rows = [e.labels for e in examples if e.labels is not None]
        labels = _stack("labels", ids, rows, fill=IGNORED)
    return Batch(ids, inputs, labels)


def batches(
    examples: Sequence[Example], batch_size: int | None = None, tokens: int = 4096
) -> list[list[Example]]:
    """Group examples of similar length.

    The examples are sorted by (length, id), so the grouping depends on nothing but the
    examples themselves. Examples that no padding could make alike (say, images of
    different sizes) come into different groups.

    Args:
        examples: The examples, in any order.
        batch_size: Examples per group; ``None`` packs by ``tokens``.
        tokens: Padded tokens per group (number of examples times the longest of them). A
            single example longer than that is a group of its own.

    Returns:
        The groups; together they hold every example once.

    Raises:
        ParameterError: If ``batch_size`` or ``tokens`` is not a positive integer.
    """
    if not (batch_size is None or is_count(batch_size)) or not is_count(tokens):
        raise ParameterError(
            f"batch_size={batch_size!r}, tokens={tokens!r}: pass positive integers "
            "(batch_size may be None)"
        )
    keyed = sorted(
        ((_rigid_shapes(e), e.length, e.id, i) for i, e in enumerate(examples)),
    )
    groups: list[list[Example]] = []
    previous = None
    for shapes, length, _, index in keyed:
        fits = groups and (
            len(groups[-1]) < batch_size
            if batch_size is not None
            else (len(groups[-1]) + 1) * length <= tokens
        )
        if not fits or shapes != previous:
            groups.append([])
        groups[-1].append(examples[index])
        previous = shapes
    return groups


def is_count(value: object) -> bool:
    """Whether a value can say how many.

    Args:
        value: What the caller passed.

    Returns:
        True for integers from 1; False for ``True``, which is an integer by accident.
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def paddable(tensor: torch.Tensor) -> bool:
    """Whether a row of this kind may be padded.

    Args:
        tensor: One input or the labels of one example.

    Returns:
        True for sequences of integers or booleans.
    """
    return tensor.ndim == 1 and not (tensor.is_floating_point() or tensor.is_complex())


def _rigid_shapes(example: Example) -> tuple[tuple[str, tuple[int, ...]], ...]:
    tensors = dict(example.inputs)
    if example.labels is not None:
        tensors["labels"] = example.labels
    return tuple(sorted((n, tuple(t.shape)) for n, t in tensors.items() if not paddable(t)))


def _stack(name: str, ids: Sequence[str], rows: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    first = rows[0]
    for example_id, row in zip(ids, rows, strict=True):
        if row.dtype != first.dtype:
            raise DataError(
                f"{name} is {first.dtype} in example {ids[0]!r} but {row.dtype} in "
                f"{example_id!r}: convert to one dtype"
            )
        if row.shape != first.shape and not (paddable(row) and paddable(first)):
            raise DataError(
                f"{name} has shape {tuple(first.shape)} in example {ids[0]!r} but "
                f"{tuple(row.shape)} in {example_id!r}, and only sequences of integers can be "
                "padded: bring them to one shape, or use batch_size=1"
            )
    if all(row.shape == first.shape for row in rows):
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def _mask(
    examples: Sequence[Example], names: Sequence[str], ids: Sequence[str]
) -> torch.Tensor | None:
    given = [example.inputs.get("attention_mask") for example in examples]
    sequences = [n for n in names if all(paddable(e.inputs[n]) for e in examples)]
    if "input_ids" in sequences:
        sequences = ["input_ids"]
    # Only where nothing is called input_ids is another sequence allowed to say what is padding.
    padded = [n for n in sequences if len({len(e.inputs[n]) for e in examples}) > 1]
    if not padded and all(mask is None for mask in given):
        return None
    name = padded[0] if padded else (sequences[0] if sequences else None)
    masks = []
    for example, mask in zip(examples, given, strict=True):
        if mask is not None:
            masks.append(mask.long() if paddable(mask) else mask)
        elif name is not None:
            masks.append(torch.ones(len(example.inputs[name]), dtype=torch.int64))
        else:
            raise DataError(
                f"example {example.id!r} has no attention_mask but others have: give all or none"
            )
    return _stack("attention_mask", ids, masks, fill=0)
