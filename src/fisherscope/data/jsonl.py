"""A JSONL file becomes tokenised, supervised examples."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from fisherscope.data.chat import render_chat
from fisherscope.data.examples import IGNORED, Example, is_count
from fisherscope.data.rows import Row, read_rows
from fisherscope.errors import DataError, ParameterError

# More characters than this per token occur in no text that people write.
_CHARACTERS_PER_TOKEN = 256


def read_jsonl(
    path: str | os.PathLike[str],
    tokenizer: Any,
    *,
    max_length: int = 512,
    max_examples: int | None = None,
    label_names: Mapping[str, int] | None = None,
) -> list[Example]:
    """Read examples from a file with one JSON object per line.

    The shape of a row says what is supervised:

    - ``{"text"}``: every token;
    - ``{"prompt", "completion"}``: the completion and the end-of-sequence token after it.
      Both are tokenised apart, so no token crosses the boundary;
    - ``{"messages": [{"role", "content"}]}``: the assistant's turns, as the chat template
      marks them;
    - ``{"text", "label"}``: the label. An integer is a class, a string a class looked up in
      ``label_names``; one number with a decimal point in the file makes it a regression.

    A row may have an ``"id"`` (string or integer); without one it is named by its index.
    Further fields are ignored, null counts as missing, blank lines are skipped.

    Args:
        path: The file, in UTF-8, not compressed.
        tokenizer: A tokenizer of transformers; for ``"messages"`` a fast one.
        max_length: Longest example in tokens. Text and conversations are cut at their end,
            prompts at their start, completions at their end if no prompt is left.
        max_examples: Read the first so many rows; ``None`` reads all.
        label_names: Class index of every name, such as ``model.config.label2id``.

    Returns:
        One example per row with int64 ``input_ids`` of shape [T] and labels as in
        :class:`Example`.

    Raises:
        DataError: If the file is missing, empty or not UTF-8 text, or a row is broken, of no
            accepted shape, has an unknown label, the id of another row, or no supervised
            token left. The message names file and line.
        ParameterError: If ``max_length`` or ``max_examples`` is not a positive integer, or
            ``tokenizer`` is no tokenizer.
    """
    if not is_count(max_length) or not (max_examples is None or is_count(max_examples)):
        raise ParameterError(
            f"max_length={max_length!r}, max_examples={max_examples!r}: pass positive integers "
            "(max_examples may be None)"
        )
    if not callable(tokenizer):
        raise ParameterError(
            f"tokenizer is of type {type(tokenizer).__name__}: pass what "
            "AutoTokenizer.from_pretrained(...) returns"
        )
    rows = read_rows(path, max_examples)
    labels = _labels(rows, label_names)
    found = []
    for row, label in zip(rows, labels, strict=True):
        try:
            ids, supervised = _encode(tokenizer, row, max_length)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        if label is None:
            label = torch.where(torch.tensor(supervised), torch.tensor(ids), IGNORED)
        found.append(Example(row.id, {"input_ids": torch.tensor(ids)}, label))
    return found


def _encode(tokenizer: Any, row: Row, max_length: int) -> tuple[list[int], list[bool]]:
    fields = row.fields
    if row.kind == "completion":
        ids, supervised = _completion(tokenizer, fields["prompt"], fields["completion"], max_length)
    elif row.kind == "messages":
        ids, supervised = _conversation(tokenizer, fields["messages"], max_length)
    else:
        ids = _truncated(tokenizer, fields["text"], max_length)
        supervised = [True] * len(ids)
    if not ids:
        raise DataError("the tokenizer makes no tokens of this row: remove it")
    # Nothing comes before the first token, so nothing predicts it.
    if row.kind != "label" and not any(supervised[1:]):
        raise DataError(
            f"no supervised token with another before it within max_length={max_length}: raise "
            "max_length, or remove the row"
        )
    return ids, supervised


def _truncated(tokenizer: Any, text: str, max_length: int) -> list[int]:
    limit = _CHARACTERS_PER_TOKEN * max_length
    # A line of gigabytes need not be tokenised whole to keep its first tokens. Those are safe
    # from the cut where at least as many tokens again lie between.
    if len(text) > limit and getattr(tokenizer, "truncation_side", "right") == "right":
        head = text[:limit]
        if len(_ids(tokenizer, head)) > 2 * max_length:
            text = head
    return _ids(tokenizer, text, special=True, truncation=True, max_length=max_length)


def _completion(
    tokenizer: Any, prompt: str, completion: str, max_length: int
) -> tuple[list[int], list[bool]]:
    target = _ids(tokenizer, completion)
    if not target:
        raise DataError("the tokenizer makes no tokens of the completion: remove the row")
    # What the tokenizer puts at the end (of a BERT, say) does not belong between the two.
    opening = _opening(_ids(tokenizer, completion, special=True), target)
    context = _ids(tokenizer, prompt)
    end = getattr(tokenizer, "eos_token_id", None)
    if end is not None and target[-1] != end:
        target = [*target, end]
    room = max(0, max_length - len(opening) - len(target))
    context = [*opening, *context[max(0, len(context) - room) :]]
    ids = [*context, *target][:max_length]
    return ids, [index >= len(context) for index in range(len(ids))]


def _opening(whole: list[int], body: list[int]) -> list[int]:
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return whole[:start]
    return []


def _conversation(
    tokenizer: Any, messages: list[dict[str, Any]], max_length: int
) -> tuple[list[int], list[bool]]:
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "'messages' needs a fast tokenizer, which knows where in the text its tokens are: "
            "load it with use_fast=True"
        )
    text, spans = render_chat(tokenizer, messages)
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    # A token that reaches over a boundary carries something of the assistant's.
    supervised = [
        any(start < stop and start < last and first < stop for first, last in spans)
        for start, stop in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), supervised


def _ids(tokenizer: Any, text: str, *, special: bool = False, **options: Any) -> list[int]:
    encoded = tokenizer(
        text,
        add_special_tokens=special,
        verbose=False,
        **options,
    )
    return list(encoded["input_ids"])


def _labels(rows: list[Row], names: Mapping[str, int] | None) -> list[torch.Tensor | None]:
    regression = any(isinstance(row.fields.get("label"), float) for row in rows)
    return [
        _label(row, names, regression=regression) if row.kind == "label" else None for row in rows
    ]


def _label(row: Row, names: Mapping[str, int] | None, *, regression: bool) -> torch.Tensor:
    value = row.fields["label"]
    if isinstance(value, str) and not regression:
        if names is None:
            raise DataError(
                f"{row.where}: the label {value!r} is a string: pass label_names, such as "
                "model.config.label2id, or write class indices"
            )
        if value not in names:
            known = ", ".join(repr(name) for name in list(names)[:20])
            raise DataError(f"{row.where}: unknown label {value!r}: the known ones are {known}")
        return torch.tensor(int(names[value]))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            f"{row.where}: the label {value!r} is neither a class index, a class name nor a number"
            + (" like the other labels of this file" if regression else "")
        )
    if regression:
        if not abs(value) <= sys.float_info.max:
            raise DataError(f"{row.where}: the label {value!r} is not finite: remove the row")
        return torch.tensor(float(value))
    if not 0 <= value < 2**63 or (names is not None and value not in names.values()):
        known = f"one of {sorted(names.values())}" if names else "0 or more"
        raise DataError(f"{row.where}: the label {value} is not a class index: it must be {known}")
    return torch.tensor(value)
