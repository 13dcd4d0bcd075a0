"""Whatever users pass as data."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from fisherscope.data import Example, collate, content_hash, examples
from fisherscope.errors import DataError, ParameterError


def padded(rows: list[list[int]], width: int, side: str, fill: int = 9) -> dict[str, torch.Tensor]:
    """A padded batch whose padding is rubbish wherever nothing may look at it."""

    def pad(row: list[int], value: int) -> list[int]:
        rest = [value] * (width - len(row))
        return rest + row if side == "left" else row + rest

    return {
        "input_ids": torch.tensor([pad(row, fill) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor([pad(row, -100) for row in rows]),
    }


def hashes(data: Any) -> list[int]:
    return [content_hash(example) for example in examples(data)]


@given(
    rows=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=5),
    extra=st.integers(0, 4),
    side=st.sampled_from(["left", "right"]),
    fill=st.integers(0, 99),
)
def test_padding_leaves_no_trace(rows: list[list[int]], extra: int, side: str, fill: int) -> None:
    # Catches: a cut that is off by one, blind to the left side, or forgets the labels.
    width = max(map(len, rows)) + extra
    bare = [{"input_ids": row, "labels": row} for row in rows]
    assert hashes(padded(rows, width, side, fill)) == hashes(bare)


def test_all_aligned_tensors_are_cut_and_others_are_not() -> None:
    # Catches: token types left at full length, a vector of other meaning cut.
    batch = padded([[5, 6]], 4, "left") | {
        "token_type_ids": torch.tensor([[0, 1, 2, 3]]),
        "inputs_embeds": torch.arange(8.0).reshape(1, 4, 2),
        "other": torch.arange(3.0)[None],
    }
    (row,) = examples(batch)
    assert "attention_mask" not in row.inputs
    assert row.inputs["token_type_ids"].tolist() == [2, 3]
    assert row.inputs["inputs_embeds"].tolist() == [[4, 5], [6, 7]]
    assert row.inputs["other"].tolist() == [0, 1, 2]
    assert row.labels is not None and row.labels.tolist() == [5, 6]


def test_regression_targets_are_never_cut() -> None:
    # Catches: K targets cut because K happens to be the padded length.
    batch = padded([[5, 6]], 4, "right") | {"labels": torch.arange(4.0)[None]}
    (row,) = examples(batch)
    assert row.labels is not None and row.labels.tolist() == [0, 1, 2, 3]


def test_masks_with_holes_or_two_dimensions_stay() -> None:
    # Catches: a hole in the mask taken for padding.
    holes = torch.tensor([[0, 1, 0, 1]])
    (row,) = examples({"input_ids": torch.arange(4)[None], "attention_mask": holes})
    assert row.inputs["input_ids"].tolist() == [0, 1, 2, 3]
    assert row.inputs["attention_mask"].tolist() == [0, 1, 0, 1]
    square = torch.ones(1, 4, 4)
    (row,) = examples({"input_ids": torch.arange(4)[None], "attention_mask": square})
    assert row.inputs["attention_mask"].shape == (4, 4)


def test_rows_without_a_token_are_refused() -> None:
    # Catches: a row of padding only, whose scores would be those of nothing.
    batch = padded([[5, 6], [7]], 3, "right")
    batch["attention_mask"][1] = 0
    with pytest.raises(DataError, match="row 1 .* all padding"):
        examples(batch)
    with pytest.raises(DataError, match="row 1 .* no tokens"):
        examples({"input_ids": [[1], []]})


def test_every_container_gives_the_same_examples() -> None:
    # Catches: one of the containers read differently (dtype, labels, ids) from the others.
    batch = padded([[5, 6, 7], [8]], 3, "right")
    lists = {name: tensor.tolist() for name, tensor in batch.items()}
    first, second = ({n: t[i : i + 1] for n, t in batch.items()} for i in range(2))
    labels = batch["labels"]
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    expected = hashes(batch)
    for data in [
        lists,
        BatchEncoding(lists),
        {name: tensor.numpy().astype(np.int32) for name, tensor in batch.items()},
        {name: list(tensor) for name, tensor in batch.items()},
        {**inputs, "label_ids": labels},
        (inputs, labels),
        [first, second],
        iter([first, second]),
        [{name: tensor[i] for name, tensor in batch.items()} for i in range(2)],
        {**batch, "position_ids": None},
        examples(batch),
        tuple(examples(batch)),
        DataLoader([{n: t[i] for n, t in batch.items()} for i in range(2)], batch_size=2),  # type: ignore[arg-type]
    ]:
        assert hashes(data) == expected, type(data)


def test_examples_come_back_as_they_are() -> None:
    # Catches: copies, which would double the memory of a data set.
    given_ones = [Example("a", {"x": torch.ones(1)}), Example("b", {"x": torch.ones(1)})]
    assert all(a is b for a, b in zip(examples(given_ones), given_ones, strict=True))
    assert examples(given_ones[0]) == given_ones[:1]


def test_positional_inputs_are_numbered() -> None:
    # Catches: (x1, x2), y read as a batch of three, or y among the inputs.
    x, y = torch.randn(3, 2), torch.tensor([2, 0, 1])
    assert [set(e.inputs) for e in examples(x)] == [{"0"}] * 3
    rows = examples(((x, x + 1), y))
    assert [set(e.inputs) for e in rows] == [{"0", "1"}] * 3
    assert torch.equal(collate(rows).inputs["1"], x + 1)
    assert [int(e.labels) for e in rows if e.labels is not None] == [2, 0, 1]


def test_loaders_and_data_sets_of_pairs() -> None:
    # Catches: DataLoader's [x, y] lists taken for two batches; rows of a data set without batch
    # dimension taken for batches.
    x, y = torch.randn(5, 2), torch.arange(5)
    pairs = TensorDataset(x, y)
    for data in (DataLoader(pairs, batch_size=2), pairs):
        batch = collate(examples(data))
        assert torch.equal(batch.inputs["0"], x)
        assert batch.labels is not None and torch.equal(batch.labels, y)
    assert torch.equal(collate(examples(DataLoader(TensorDataset(x)))).inputs["0"], x)


def test_a_list_of_two_unlike_tensors_is_ambiguous() -> None:
    # Catches: [x, y] read as two batches of inputs, the labels among them.
    x, y = torch.randn(3, 2), torch.tensor([2, 0, 1])
    with pytest.raises(DataError, match="pass a tuple"):
        examples([x, y])
    assert len(examples([x, x])) == 6


def test_labels_become_int64_and_floats_stay() -> None:
    # Catches: int32 labels, which cross-entropy refuses; doubles rounded to floats.
    x = torch.randn(2, 2)
    (first, _) = examples((x, torch.tensor([0, 1], dtype=torch.int32)))
    assert first.labels is not None and first.labels.dtype == torch.int64
    (first, _) = examples((x, torch.tensor([0.5, 1.5], dtype=torch.float64)))
    assert first.labels is not None and first.labels.dtype == torch.float64


def test_ids_from_the_data() -> None:
    # Catches: ids passed to the model as an input, tensor ids printed as tensor(7).
    x = torch.randn(2, 2)
    assert [e.id for e in examples({"x": x, "id": ["a", "b"]})] == ["a", "b"]
    assert [e.id for e in examples({"x": x, "example_id": torch.tensor([7, 8])})] == ["7", "8"]
    assert [e.id for e in examples([{"input_ids": [1, 2], "id": 5}])] == ["5"]
    assert set(examples({"x": x, "id": ["a", "b"]})[0].inputs) == {"x"}


@given(
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    seed=st.randoms(use_true_random=False),
    size=st.integers(1, 8),
)
def test_names_come_from_content_alone(rows: list[int], seed: Any, size: int) -> None:
    # Catches: names by order of arrival or by batch, copies merged or refused, copies whose
    # numbers depend on what else there is.
    def named(values: list[int]) -> dict[str, int]:
        x, y = torch.tensor(values)[:, None], torch.tensor(values) % 2
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(values), size)]
        return {e.id: int(e.inputs["0"][0]) for e in examples(batches)}

    before = named(rows)
    assert sorted(before.values()) == sorted(rows)
    shuffled = list(rows)
    seed.shuffle(shuffled)
    assert named(shuffled) == before
    for value in set(rows):
        alone = named([value] * rows.count(value))
        assert alone.items() <= before.items()
        assert sorted(alone)[0] in named([value])
    assert all(re.fullmatch(r"[0-9a-f]{16}(-[2-9])?", name) for name in before)


def test_names_follow_padding_and_containers_no_more_than_content_does() -> None:
    # Catches: a name taken before the padding is cut or the labels are int64.
    batch = padded([[5, 6, 7], [8]], 3, "right")
    wide = padded([[8], [5, 6, 7]], 6, "left", fill=0)
    names = [e.id for e in examples(batch)]
    assert [e.id for e in examples(wide)] == names[::-1]
    assert [e.id for e in examples({n: t.int() for n, t in batch.items()})] == names
    assert [e.id for e in examples([Example("", e.inputs, e.labels) for e in examples(wide)])] == (
        names[::-1]
    )


def test_given_names_stay() -> None:
    # Catches: a name of the data's own replaced, or counted as a copy.
    x = torch.zeros(2, 1)
    mixed = [{"x": x, "id": ["a", "b"]}, {"x": x}]
    bare = [e.id for e in examples({"x": x})]
    assert bare[1] == f"{bare[0]}-2"
    assert [e.id for e in examples(mixed)] == ["a", "b", *bare]


def test_duplicate_ids_are_refused() -> None:
    # Catches: two rows of the ledger under one name.
    x = torch.randn(2, 2)
    with pytest.raises(DataError, match="id 'a' .*row 1"):
        examples({"x": x, "id": ["a", "a"]})
    with pytest.raises(DataError, match="id 'a'"):
        examples([Example("a", {"x": x[0]}), Example("a", {"x": x[1]})])
    # A name that comes from the content must not hide a given one either.
    name = examples({"x": x})[1].id
    with pytest.raises(DataError, match=f"id '{name}' .*row 2"):
        examples([{"x": x[:1], "id": [name]}, {"x": x}])


@pytest.mark.parametrize("bad", [True, 1.5, "", None])
def test_unusable_ids_are_refused(bad: Any) -> None:
    # Catches: None or 1.5 turned into a name by str().
    with pytest.raises(DataError, match="ids are non-empty"):
        examples({"x": torch.ones(2, 1), "id": ["a", bad]})


def test_max_examples_stops_reading() -> None:
    # Catches: an endless stream read to its end.
    def endless() -> Any:
        yield from [torch.ones(2, 1)] * 2
        raise AssertionError("read on after enough")

    names = [e.id for e in examples(endless(), max_examples=3)]
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ParameterError, match="max_examples"):
            examples(torch.ones(2, 1), max_examples=bad)  # type: ignore[arg-type]


def test_examples_do_not_share_memory_with_the_batch() -> None:
    # Catches: a loader that reuses its buffer changing the examples that were read before.
    def reusing() -> Any:
        buffer = torch.zeros(1, 3)
        for value in range(2):
            yield buffer.fill_(value)

    assert [float(e.inputs["0"][0]) for e in examples(reusing())] == [0.0, 1.0]
    weight = torch.ones(1, 2, requires_grad=True)
    assert not examples(weight)[0].inputs["0"].requires_grad


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty"),
        (iter([]), "used before"),
        ({"input_ids": torch.zeros(0, 3)}, "empty"),
        ({}, "without inputs"),
        ({"labels": torch.zeros(2)}, "without inputs"),
        ("train.jsonl", "read_jsonl"),
        (3, "int"),
        (None, "NoneType"),
        (["some text"], "str"),
        ((torch.ones(2, 1), torch.ones(2), torch.ones(2)), "3 parts"),
        ((torch.ones(2, 1), torch.ones(3)), r"number of rows: \{'0': 2, 'labels': 3\}"),
        ({"x": torch.ones(2, 1), "text": ["a", "b"]}, "'text' of row 0"),
        ({"x": torch.ones(2, 1), "use_cache": True}, "'use_cache' is bool"),
        ({"x": torch.ones(2, 1), "label": [0, 1], "labels": [0, 1]}, "mean the same"),
        (({"x": torch.ones(2, 1), "labels": [0, 1]}, torch.ones(2)), "once"),
        (torch.tensor(1.0), "without a batch dimension"),
        ({"train": {"x": torch.ones(2)}}, "without a batch dimension"),
    ],
)
def test_unusable_data_is_named(data: Any, message: str) -> None:
    # Catches: a KeyError or TypeError from the inside, or data silently read as something else.
    with pytest.raises(DataError, match=message):
        examples(data)
