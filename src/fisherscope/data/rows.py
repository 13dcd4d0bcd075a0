"""The lines of a JSONL file, checked before anything is tokenised."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fisherscope.errors import DataError

ACCEPTED = (
    '{"text"}, {"prompt", "completion"}, {"messages": [{"role", "content"}]} or {"text", "label"}'
)
# The first bytes of what people pass where text is expected.
_FOREIGN = {
    b"\x1f\x8b": "gzip-compressed: decompress it (gunzip) first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: decompress it (unzstd) first",
    b"\xfd7zXZ": "xz-compressed: decompress it (unxz) first",
    b"BZh": "bzip2-compressed: decompress it (bunzip2) first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PAR1": "a Parquet file: write it as JSONL, one object per line",
    codecs.BOM_UTF16_LE: "UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: save it as UTF-8",
}


@dataclass(frozen=True)
class Row:
    """One object of the file, its fields of the right types.

    Attributes:
        where: ``file:line``, for messages.
        id: The row's ``id`` as text, or its index.
        kind: Which of the accepted shapes it has.
        fields: The object without its null values.
    """

    where: str
    id: str
    kind: Literal["text", "completion", "messages", "label"]
    fields: dict[str, Any]


def read_rows(path: str | os.PathLike[str], max_examples: int | None) -> list[Row]:
    """Read and check the rows of a file.

    Args:
        path: The file: UTF-8, one JSON object per line; blank lines count for nothing.
        max_examples: Read no further than so many rows; ``None`` reads all.

    Returns:
        At least one row, in the order of the file.

    Raises:
        DataError: If the file cannot be read or is empty, or if a row is broken, of no
            accepted shape, or has the id of another.
    """
    rows: list[Row] = []
    places: dict[str, str] = {}
    for where, line in _lines(Path(path)):
        row = _row(where, _parse(where, line), str(len(rows)))
        if row.id in places:
            raise DataError(
                f"{where}: the id {row.id!r} is already that of {places[row.id]} (a row without "
                "an id is named by its index): give every row its own"
            )
        places[row.id] = where
        rows.append(row)
        if len(rows) == max_examples:
            break
    if not rows:
        raise DataError(f"{path} is empty: write one JSON object per line, {ACCEPTED}")
    labelled = [row for row in rows if row.kind == "label"]
    if labelled and len(labelled) < len(rows):
        other = next(row for row in rows if row.kind != "label")
        raise DataError(
            f"{other.where} has no label but {labelled[0].where} has: label all rows or none"
        )
    return rows


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    if os.path.isdir(path):
        inside = sorted(p.name for p in path.glob("*.jsonl"))[:5]
        raise DataError(
            f"{path} is a directory: pass one file"
            + (f", such as {', '.join(inside)} in it" if inside else "")
        )
    try:
        with path.open("rb") as file:
            head = file.read(8)
            for magic, what in _FOREIGN.items():
                if head.startswith(magic):
                    raise DataError(f"{path} is {what}")
            file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
            # Binary lines end at \n alone: text mode would also split at a bare \r.
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield f"{path}:{number}", _decode(f"{path}:{number}", raw)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path (now in {Path.cwd()})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} is not UTF-8: save the file as UTF-8"
        ) from error


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        whole = line.lstrip()[:1] in {"{", "["} and error.pos >= len(line.rstrip())
        hint = "; one object must be on one line, not spread over several" if whole else ""
        raise DataError(f"{where}:{error.colno}: broken JSON ({error.msg}){hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: unreadable JSON ({error})") from error


def _row(where: str, value: Any, index: str) -> Row:
    if not isinstance(value, dict):
        hint = ": write the array's objects one per line" if isinstance(value, list) else ""
        raise DataError(f"{where}: expected a JSON object, found {_json_type(value)}{hint}")
    # Exporters write a missing value as null.
    fields = {name: item for name, item in value.items() if item is not None}
    shapes: dict[str, bool] = {
        "text": "text" in fields,
        "completion": "prompt" in fields and "completion" in fields,
        "messages": "messages" in fields,
    }
    present = [shape for shape, there in shapes.items() if there]
    if len(present) != 1:
        found = ", ".join(map(repr, fields)) or "nothing"
        problem = "no accepted shape" if not present else "more than one shape"
        raise DataError(f"{where}: {problem} (fields: {found}): write one of {ACCEPTED}")
    kind: Any = present[0]
    if kind == "text":
        _text(where, "text", fields["text"])
        kind = "label" if "label" in fields else "text"
    elif kind == "completion":
        _text(where, "prompt", fields["prompt"], empty=True)
        _text(where, "completion", fields["completion"])
    else:
        _messages(where, fields["messages"])
    return Row(where, _id(where, fields.get("id", index)), kind, fields)


def _id(where: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(f"{where}: 'id' must be a non-empty string or an integer, found {value!r}")
    return str(value)


def _text(where: str, name: str, value: Any, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} must be a string, found {_json_type(value)}")
    if not empty and not value.strip():
        raise DataError(f"{where}: {name!r} is empty: remove the row or fill it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name!r} holds half a character (a lone surrogate, at {error.start}): "
            "remove it"
        ) from error


def _messages(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{where}: 'messages' must be a non-empty array, found {_json_type(messages)}"
        )
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f'{where}: {name} must be an object with "role" and "content"')
        _text(where, f"{name}.role", message["role"])
        _text(where, f"{name}.content", message["content"], empty=message["role"] != "assistant")
    if all(message["role"] != "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise DataError(
            f"{where}: no message of the role 'assistant' (roles: {roles}): only the "
            "assistant's turns are supervised"
        )


def _json_type(value: Any) -> str:
    if isinstance(value, (list, dict)):
        kind = "array" if isinstance(value, list) else "object"
        return f"an {kind}" if value else f"an empty {kind}"
    text = json.dumps(value)
    kind = {str: "the string", bool: "the boolean", type(None): "the value"}.get(
        type(value), "the number"
    )
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"
