"""Stacking and grouping of examples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherscope.data import Batch, Example, batches, collate
from fisherscope.errors import DataError, ParameterError


def sequence(name: str, tokens: list[int]) -> Example:
    ids = torch.tensor(tokens)
    return Example(name, {"input_ids": ids}, ids.clone())


def test_shorter_rows_are_padded_right_and_masked() -> None:
    # Catches: labels padded with 0 (a real token would be scored), padding on the left.
    batch = collate([sequence("a", [5, 6, 7]), sequence("b", [8])])
    assert batch.ids == ("a", "b")
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, 6, 7], [8, -100, -100]]


def test_no_mask_where_it_says_nothing() -> None:
    # Catches: a mask always added, which breaks models that take none.
    batch = collate([sequence("a", [5, 6]), sequence("b", [8, 9])])
    assert set(batch.inputs) == {"input_ids"}


def test_given_mask_is_kept_and_completed() -> None:
    # Catches: a custom mask overwritten by ones, and rows without one masked out.
    holes = Example("a", {"input_ids": torch.arange(3), "attention_mask": torch.tensor([1, 0, 1])})
    batch = collate([holes, Example("b", {"input_ids": torch.arange(2)})])
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 1], [1, 1, 0]]
    assert batch.labels is None


def test_boolean_mask_is_padded_with_false() -> None:
    # Catches: bool and int masks in one batch refused, or padded with True.
    rows = [
        Example("a", {"input_ids": torch.arange(3), "attention_mask": torch.tensor([True] * 3)}),
        Example("b", {"input_ids": torch.arange(1)}),
    ]
    assert collate(rows).inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_ragged_positional_sequences_get_a_mask() -> None:
    # Catches: silent padding of sequences that are not called input_ids.
    batch = collate([Example("a", {"0": torch.arange(1, 3)}), Example("b", {"0": torch.arange(4)})])
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_unequal_features_are_refused_by_name() -> None:
    # Catches: floats padded with 0, which changes the data.
    rows = [Example("a", {"x": torch.ones(3)}), Example("b", {"x": torch.ones(2)})]
    with pytest.raises(DataError, match=r"x has shape \(3,\) in example 'a' but \(2,\) in 'b'"):
        collate(rows)


def test_unlike_examples_are_refused_by_name() -> None:
    # Catches: an input of one example dropped, dtypes promoted, labels lost, without a word.
    one = Example("a", {"x": torch.ones(2)}, torch.tensor(1))
    with pytest.raises(DataError, match="'a' and 'b' have different inputs"):
        collate([one, Example("b", {"y": torch.ones(2)}, torch.tensor(1))])
    with pytest.raises(DataError, match=r"float32 in example 'a' but torch.float64 in 'b'"):
        collate([one, Example("b", {"x": torch.ones(2).double()}, torch.tensor(1))])
    with pytest.raises(DataError, match="'b' has no labels"):
        collate([one, Example("b", {"x": torch.ones(2)})])
    with pytest.raises(DataError, match="'b' has no labels"):
        collate([Example("b", {"x": torch.ones(2)}), one])
    with pytest.raises(DataError, match="no examples"):
        collate([])


def test_mask_on_some_images_only_is_refused() -> None:
    # Catches: a mask invented for data in which nothing is a sequence.
    image = Example("a", {"x": torch.ones(2, 2), "attention_mask": torch.ones(2, 2)})
    with pytest.raises(DataError, match="'b' has no attention_mask"):
        collate([image, Example("b", {"x": torch.ones(2, 2)})])


def test_length_counts_tokens() -> None:
    # Catches: the feature dimension of an image or a vector taken for a length.
    assert sequence("a", [1, 2, 3]).length == 3
    assert Example("a", {"pixel_values": torch.ones(3, 8, 8)}).length == 3
    assert Example("a", {"0": torch.arange(7)}).length == 1


def test_call_orders_positional_inputs_by_number() -> None:
    # Catches: "10" sorted before "2".
    inputs = {str(i): torch.tensor([i]) for i in reversed(range(11))} | {"named": torch.ones(1)}
    seen = Batch(("a",), inputs).call(lambda *args, **kwargs: (args, kwargs), flag=True)
    assert [int(tensor) for tensor in seen[0]] == list(range(11))
    assert set(seen[1]) == {"named", "flag"}


def test_to_moves_inputs_and_labels() -> None:
    # Catches: labels left behind on the CPU.
    batch = collate([sequence("a", [1, 2])]).to("meta")
    assert batch.labels is not None
    assert batch.labels.device.type == batch.inputs["input_ids"].device.type == "meta"
    assert collate([Example("a", {"x": torch.ones(1)})]).to("meta").labels is None


def test_examples_compare_by_identity() -> None:
    # Catches: the dataclass's own __eq__, which raises on tensors.
    one, other = sequence("a", [1, 2]), sequence("a", [1, 2])
    assert one == one and one != other and len({one, other}) == 2


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_padding_is_undone_by_the_mask(lengths: list[int]) -> None:
    # Catches: rows that leak into each other, off-by-one lengths of the mask.
    rows = [sequence(str(i), list(range(1, n + 1))) for i, n in enumerate(lengths)]
    batch = collate(rows)
    assert batch.labels is not None
    ids = batch.inputs["input_ids"]
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    for index, row in enumerate(rows):
        assert torch.equal(ids[index][mask[index] == 1], row.inputs["input_ids"])
        assert torch.equal(batch.labels[index] != -100, mask[index] == 1)


@given(
    lengths=st.lists(st.integers(1, 30), max_size=20),
    batch_size=st.none() | st.integers(1, 5),
    tokens=st.integers(1, 60),
    seed=st.randoms(use_true_random=False),
)
def test_groups_hold_everything_once_and_ignore_the_order(
    lengths: list[int], batch_size: int | None, tokens: int, seed: object
) -> None:
    # Catches: a lost last group, a budget counted without padding, groups that follow the input.
    rows = [sequence(f"{i:02}", [1] * n) for i, n in enumerate(lengths)]
    groups = batches(rows, batch_size, tokens)
    names = [[row.id for row in group] for group in groups]
    assert sorted(sum(names, [])) == [row.id for row in rows]
    flat = [(row.length, row.id) for group in groups for row in group]
    assert flat == sorted(flat)
    for group, following in zip(groups, [*groups, None][1:], strict=True):
        widest = max(row.length for row in group)
        if batch_size is None:
            assert len(group) == 1 or len(group) * widest <= tokens
            if following:  # as full as the budget allows
                assert (len(group) + 1) * following[0].length > tokens
        else:
            assert len(group) == batch_size or following is None
    shuffled = rows[:]
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    assert [[r.id for r in group] for group in batches(shuffled, batch_size, tokens)] == names


def test_images_of_different_sizes_come_into_different_groups() -> None:
    # Catches: groups that cannot be stacked although each example alone can be used.
    rows = [Example(str(i), {"x": torch.ones(3, 4 + i % 2, 4)}) for i in range(6)]
    groups = batches(rows)
    assert [[row.id for row in group] for group in groups] == [["0", "2", "4"], ["1", "3", "5"]]
    assert [collate(group).inputs["x"].shape[0] for group in groups] == [3, 3]


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_sizes_are_positive_integers(size: int) -> None:
    # Catches: batch_size=0 looping for ever or making empty groups.
    with pytest.raises(ParameterError, match="positive integer"):
        batches([sequence("a", [1])], batch_size=size)
    with pytest.raises(ParameterError, match="positive integer"):
        batches([sequence("a", [1])], tokens=size)
