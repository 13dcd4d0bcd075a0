"""Files as users hand them over."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fisherscope.data import read_jsonl
from fisherscope.errors import DataError

Write = Callable[..., Path]


@pytest.fixture
def refused(tokenizer: Any, write: Write) -> Callable[..., str]:
    """The message about a file whose third line is bad."""

    def message(bad: Any) -> str:
        path = write({"text": "the cat"}, {"text": "sat"}, bad, {"text": "mat"})
        with pytest.raises(DataError) as caught:
            read_jsonl(path, tokenizer)
        assert str(caught.value).startswith(f"{path}:3:"), caught.value
        return str(caught.value)

    return message


def test_bom_crlf_and_blank_lines(tokenizer: Any, tmp_path: Path) -> None:
    # Catches: files saved on Windows refused at their first character or their last line.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "the cat"}\r\n\r\n  \t\r\n{"text": "the mat"}\r\n')
    rows = read_jsonl(path, tokenizer)
    assert [row.id for row in rows] == ["0", "1"]
    expected = tokenizer("the mat")["input_ids"]
    assert rows[1].inputs["input_ids"].tolist() == expected


def test_only_newlines_end_a_line(tokenizer: Any, tmp_path: Path) -> None:
    # Catches: str.splitlines, which also splits at U+2028, form feed or a bare \r in the text.
    path = tmp_path / "rows.jsonl"
    text = "the\u2028cat\u0085sat\x1con"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    (row,) = read_jsonl(path, tokenizer)
    assert row.inputs["input_ids"].tolist() == tokenizer(text)["input_ids"]


def test_null_counts_as_missing_and_further_fields_as_nothing(tokenizer: Any, write: Write) -> None:
    # Catches: exports with null columns refused or misread.
    path = write({"text": "the cat", "label": None, "prompt": "x", "id": None, "meta": {"a": 1}})
    (row,) = read_jsonl(str(path), tokenizer)
    assert row.id == "0" and row.labels is not None and row.labels.ndim == 1


def test_max_examples_reads_no_further(tokenizer: Any, write: Write) -> None:
    # Catches: a whole file parsed for its first rows.
    path = write({"text": "the cat"}, "broken")
    assert len(read_jsonl(path, tokenizer, max_examples=1)) == 1


def test_a_late_error_comes_before_tokenising(tokenizer: Any, write: Write) -> None:
    # Catches: minutes of tokenising before the message about the last line.
    calls: list[str] = []

    def counting(text: str, **options: Any) -> Any:
        calls.append(text)
        return tokenizer(text, **options)

    path = write({"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    with pytest.raises(DataError, match="rows.jsonl:2"):
        read_jsonl(path, counting, label_names={"x": 0})
    assert not calls


def test_broken_json_names_the_column(refused: Callable[..., str]) -> None:
    # Catches: the position within the file, or counted from 0.
    assert ":3:10: broken JSON" in refused('{"text": the}')
    assert "must be on one line" in refused('{"text":')
    assert "must be on one line" not in refused('{"text": "a"} {"text": "b"}')
    assert "unreadable JSON" in refused("[" * 200_000)
    assert "unreadable JSON" in refused('{"text": ' + "1" * 10_000 + "}")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([{"text": "a"}], "objects one per line"),
        ('"the cat"', 'found the string "the cat"'),
        ("3", "found the number 3"),
        ("null", "found the value null"),
        ({"content": "a", "lable": 1}, "no accepted shape (fields: 'content', 'lable')"),
        ({"prompt": "a"}, "no accepted shape (fields: 'prompt')"),
        ({}, "no accepted shape (fields: nothing)"),
        ({"text": None}, "no accepted shape"),
        ({"text": "a", "prompt": "b", "completion": "c"}, "more than one shape"),
        ({"text": 5}, "'text' must be a string, found the number 5"),
        ({"text": True}, "'text' must be a string, found the boolean true"),
        ({"text": ["a"]}, "'text' must be a string, found an array"),
        ({"text": {"a": 1}}, "'text' must be a string, found an object"),
        ({"text": ""}, "'text' is empty"),
        ({"text": " \n"}, "'text' is empty"),
        ('{"text": "half \\ud800 a character"}', "lone surrogate, at 5"),
        ({"prompt": 1, "completion": "a"}, "'prompt' must be a string"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"messages": []}, "found an empty array"),
        ({"messages": "hi"}, "must be a non-empty array"),
        ({"messages": ["hi"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0] must be an object"),
        ({"messages": [{"role": 1, "content": "a"}]}, "'messages[0].role' must be a string"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "'messages[0].content' must be a"),
        ({"messages": [{"role": "user", "content": "a"}]}, "(roles: user)"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "'messages[0].content' is empty"),
        ({"text": "a", "id": 1.5}, "'id' must be"),
        ({"text": "a", "id": ""}, "'id' must be"),
        ({"text": "a", "id": False}, "'id' must be"),
        ({"text": "a", "id": "1"}, "rows.jsonl:2"),
        ({"text": "a", "id": 1}, "the id '1' is already that of"),
    ],
)
def test_unusable_rows_name_line_and_fix(
    bad: Any, message: str, refused: Callable[..., str]
) -> None:
    # Catches: a KeyError, a TypeError of the tokenizer, or a row silently read as another shape.
    assert message in refused(bad)


def test_labelled_and_unlabelled_rows_do_not_mix(tokenizer: Any, write: Write) -> None:
    # Catches: labels of different meaning in one data set.
    path = write({"text": "the cat", "label": 1}, {"text": "the mat"})
    with pytest.raises(DataError, match=r"rows.jsonl:2 has no label but .*rows.jsonl:1 has"):
        read_jsonl(path, tokenizer)


def test_paths_that_are_no_file(tokenizer: Any, write: Write, tmp_path: Path) -> None:
    # Catches: a bare FileNotFoundError or IsADirectoryError.
    with pytest.raises(DataError, match="missing.jsonl does not exist"):
        read_jsonl(tmp_path / "missing.jsonl", tokenizer)
    with pytest.raises(DataError, match="is a directory: pass one file$"):
        read_jsonl(tmp_path, tokenizer)
    write({"text": "a"}, name="math.jsonl")
    with pytest.raises(DataError, match="is a directory.*such as math.jsonl"):
        read_jsonl(tmp_path, tokenizer)
    with pytest.raises(DataError, match="cannot be read|does not exist"):
        read_jsonl(tmp_path / "math.jsonl" / "below", tokenizer)


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_empty_files(content: bytes, tokenizer: Any, tmp_path: Path) -> None:
    # Catches: an empty list, which fails much later.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="rows.jsonl is empty"):
        read_jsonl(path, tokenizer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Without a fixed time the bytes, and with them the test's name, differ between processes.
        (gzip.compress(b'{"text": "a"}', mtime=0), "gzip-compressed: decompress it"),
        (b"PAR1....", "Parquet"),
        (b"PK\x03\x04....", "zip archive"),
        ('{"text": "a"}'.encode("utf-16"), "UTF-16: save it as UTF-8"),
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"rows.jsonl:2: byte 14 is not UTF-8"),
    ],
)
def test_other_kinds_of_files(content: bytes, message: str, tokenizer: Any, tmp_path: Path) -> None:
    # Catches: a UnicodeDecodeError, or the bytes decoded as Latin-1.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_jsonl(path, tokenizer)
