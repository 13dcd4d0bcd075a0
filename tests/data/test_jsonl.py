"""From rows of every shape to tokens and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from fisherscope.data import Example, batches, collate, read_jsonl
from fisherscope.errors import DataError, ParameterError

Write = Callable[..., Path]


def supervised(example: Example) -> list[int]:
    assert example.labels is not None
    return example.labels[example.labels != -100].tolist()


def ids(example: Example) -> list[int]:
    return example.inputs["input_ids"].tolist()


def test_every_token_of_a_text_is_supervised(tokenizer: Any, write: Write) -> None:
    # Catches: labels shifted, the start token lost, token types passed on to models without them.
    (row,) = read_jsonl(write({"text": "the cat sat"}), tokenizer)
    assert ids(row) == tokenizer("the cat sat")["input_ids"] == supervised(row)
    assert ids(row)[0] == tokenizer.bos_token_id
    assert set(row.inputs) == {"input_ids"}
    assert row.labels is not None and row.labels.dtype == torch.int64


def test_texts_are_cut_at_max_length(tokenizer: Any, write: Write) -> None:
    # Catches: max_length ignored, or the start cut instead of the end.
    (row,) = read_jsonl(write({"text": "the cat sat on the mat"}), tokenizer, max_length=4)
    assert ids(row) == tokenizer("the cat sat on the mat")["input_ids"][:4]


def test_the_end_token_of_a_bert_survives_the_cut(bert_tokenizer: Any, write: Write) -> None:
    # Catches: a cut after tokenisation, which removes [SEP].
    (row,) = read_jsonl(write({"text": "the cat sat on the mat"}), bert_tokenizer, max_length=4)
    assert len(ids(row)) == 4
    assert [ids(row)[0], ids(row)[-1]] == [
        bert_tokenizer.cls_token_id,
        bert_tokenizer.sep_token_id,
    ]


def test_a_huge_line_is_cut_like_any_other(tokenizer: Any, write: Write) -> None:
    # Catches: a shortcut for long lines that changes their first tokens, or one without effect.
    text = "the cat sat on the mat, " * 20_000
    lengths: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            lengths.append(len(text))
            return tokenizer(text, **options)

    (row,) = read_jsonl(write({"text": text}), Counting(), max_length=16)
    assert ids(row) == tokenizer(text)["input_ids"][:16]
    assert max(lengths) < len(text) / 50


def test_a_huge_line_that_begins_with_nothing(write: Write) -> None:
    # Catches: the shortcut for long lines taken where their start holds too few tokens.
    backend = Tokenizer(WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    (row,) = read_jsonl(write({"text": " " * 9_000 + "the cat"}), words, max_length=16)
    assert ids(row) == [1, 2]


def test_only_the_completion_is_supervised(tokenizer: Any, write: Write) -> None:
    # Catches: a boundary found by text (tokens merge over it), the prompt supervised, the end
    # token forgotten or doubled.
    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    (row, ended) = read_jsonl(
        write(
            {"prompt": "the c", "completion": "at sat"},
            {"prompt": "the c", "completion": "at sat</s>"},
        ),
        tokenizer,
    )
    assert plain("the c") + plain("at sat") != plain("the cat sat")
    assert supervised(row) == [*plain("at sat"), tokenizer.eos_token_id] == supervised(ended)
    assert ids(row) == [tokenizer.bos_token_id, *plain("the c"), *supervised(row)]


def test_nothing_comes_between_prompt_and_completion(bert_tokenizer: Any, write: Write) -> None:
    # Catches: the [SEP] that ends a BERT's text put between the prompt and its completion.
    (row,) = read_jsonl(write({"prompt": "the cat", "completion": "sat"}), bert_tokenizer)
    sep = bert_tokenizer.sep_token_id
    assert sep not in ids(row) and ids(row)[0] == bert_tokenizer.cls_token_id


def test_prompts_are_cut_from_the_left_before_completions(tokenizer: Any, write: Write) -> None:
    # Catches: the completion cut while prompt is left, the start token lost, the wrong end cut.
    row = {"prompt": "hello world how are you", "completion": "the cat sat"}
    path = write(row)
    (full,) = read_jsonl(path, tokenizer)
    target = supervised(full)
    context = ids(full)[: -len(target)]
    for max_length in range(2, len(ids(full)) + 3):
        (cut,) = read_jsonl(path, tokenizer, max_length=max_length)
        kept = max(0, min(max_length, len(ids(full))) - 1 - len(target))
        expected = context[:1] + (context[1:][-kept:] if kept else []) + target
        assert ids(cut) == expected[:max_length]
        assert supervised(cut) == target[: max_length - 1]


def test_an_empty_prompt_needs_a_start_token(
    tokenizer: Any, plain_tokenizer: Any, write: Write
) -> None:
    # Catches: an unconditional completion refused, or one token that nothing predicts accepted.
    path = write({"prompt": "", "completion": "the"})
    assert len(read_jsonl(path, tokenizer)[0].inputs["input_ids"]) == 3
    (row,) = read_jsonl(path, plain_tokenizer)
    assert ids(row)[-1] == plain_tokenizer.eos_token_id
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*max_length=1"):
        read_jsonl(path, tokenizer, max_length=1)
    with pytest.raises(DataError, match="no supervised token"):
        read_jsonl(write({"text": "the"}, name="t.jsonl"), plain_tokenizer)


def test_class_labels(tokenizer: Any, write: Write) -> None:
    # Catches: class indices read as floats, names looked up wrongly.
    rows = [{"text": "the cat", "label": 1}, {"text": "sat on", "label": 0}]
    labels = [row.labels for row in read_jsonl(write(*rows), tokenizer)]
    assert torch.equal(torch.stack([x for x in labels if x is not None]), torch.tensor([1, 0]))
    rows = [{"text": "the cat", "label": "good"}, {"text": "sat on", "label": "bad"}]
    names = {"bad": 0, "good": 1}
    named = read_jsonl(write(*rows, name="n.jsonl"), tokenizer, label_names=names)
    assert collate(named).labels is not None
    assert [int(row.labels) for row in named if row.labels is not None] == [1, 0]


def test_one_decimal_point_makes_a_regression(tokenizer: Any, write: Write) -> None:
    # Catches: 3 and 2.5 in one file read as a class and a number, which cannot be stacked.
    path = write({"text": "the cat", "label": 3}, {"text": "sat on", "label": 2.5})
    batch = collate(read_jsonl(path, tokenizer))
    assert batch.labels is not None
    assert batch.labels.dtype == torch.float32 and batch.labels.tolist() == [3.0, 2.5]


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("good", None, "pass label_names"),
        ("goood", {"bad": 0, "good": 1}, "'goood': the known ones are 'bad', 'good'"),
        (2, {"bad": 0, "good": 1}, r"one of \[0, 1\]"),
        (-1, None, "0 or more"),
        (2**70, None, "0 or more"),
        (True, None, "neither"),
        ([0, 1], None, "neither"),
        (float("nan"), None, "not finite"),
    ],
)
def test_unusable_labels_name_their_line(
    label: Any, names: Any, message: str, tokenizer: Any, write: Write
) -> None:
    # Catches: -1 (a hidden test label) or True used as a class, a KeyError for an unknown name.
    path = write({"text": "the cat", "label": 0}, "", {"text": "the cat", "label": label})
    with pytest.raises(DataError, match=f"rows.jsonl:3: .*{message}"):
        read_jsonl(path, tokenizer, label_names=names)


def test_names_among_numbers_are_refused(tokenizer: Any, write: Write) -> None:
    # Catches: a class name in a regression file.
    path = write({"text": "the cat", "label": 0.5}, {"text": "the cat", "label": "good"})
    with pytest.raises(DataError, match="rows.jsonl:2: .*like the other labels"):
        read_jsonl(path, tokenizer, label_names={"good": 1})


def test_ids_come_from_the_row_or_its_index(tokenizer: Any, write: Write) -> None:
    # Catches: line numbers for ids, which blank lines would shift; an int kept as int.
    path = write({"text": "the cat", "id": 7}, "", {"text": "the"}, {"text": "sat", "id": "x"})
    assert [row.id for row in read_jsonl(path, tokenizer)] == ["7", "1", "x"]
    assert [row.id for row in read_jsonl(path, tokenizer, max_examples=2)] == ["7", "1"]


def test_the_tokenizer_is_left_as_it_was(tokenizer: Any, write: Write) -> None:
    # Catches: truncation left switched on in the user's tokenizer.
    before = tokenizer("the cat sat on the mat")["input_ids"]
    read_jsonl(write({"text": "the cat sat on the mat"}), tokenizer, max_length=3)
    assert tokenizer("the cat sat on the mat")["input_ids"] == before


@pytest.mark.parametrize("option", ["max_length", "max_examples"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_are_positive_integers(
    option: str, value: Any, tokenizer: Any, write: Write
) -> None:
    # Catches: max_length=0, which tokenizers take for no limit.
    with pytest.raises(ParameterError, match=option):
        read_jsonl(write({"text": "the cat"}), tokenizer, **{option: value})


def test_something_else_than_a_tokenizer(tokenizer: Any, write: Write) -> None:
    # Catches: a TypeError from the inside for a model name or a bare tokenizers object.
    for wrong in ("gpt2", None, tokenizer.backend_tokenizer):
        with pytest.raises(ParameterError, match="AutoTokenizer"):
            read_jsonl(write({"text": "the cat"}), wrong)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    pairs=st.lists(
        st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12)), min_size=1, max_size=4
    ),
    max_length=st.integers(8, 40),
)
def test_any_completion_round_trips(
    pairs: list[tuple[str, str]], max_length: int, tokenizer: Any, write: Write
) -> None:
    # Catches: escapes, line separators and odd characters that move a boundary or split a line.
    pairs = [(p, c) for p, c in pairs if c.strip()]
    if not pairs:
        return
    path = write(*({"prompt": p, "completion": c} for p, c in pairs))
    rows = read_jsonl(path, tokenizer, max_length=max_length)
    for (_, completion), row in zip(pairs, rows, strict=True):
        whole = tokenizer(completion, add_special_tokens=False)["input_ids"]
        if len(whole) + 2 <= max_length:
            end = [] if whole[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
            assert supervised(row) == whole + end
        assert row.length <= max_length
    assert sum(len(group) for group in batches(rows, tokens=64)) == len(rows)
    collate(rows)
