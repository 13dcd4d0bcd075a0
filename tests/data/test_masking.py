"""Labels for masked language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherscope.data import Example, keyed_uniforms, mask_tokens
from fisherscope.errors import DataError, ParameterError

CLS, SEP, MASK = 0, 1, 2
SPECIAL = [CLS, SEP, MASK]


def sentence(name: str, length: int) -> Example:
    ids = torch.cat([torch.tensor([CLS]), torch.arange(10, 10 + length), torch.tensor([SEP])])
    return Example(name, {"input_ids": ids})


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    probability=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**64),
)
def test_labels_are_the_hidden_tokens(lengths: list[int], probability: float, seed: int) -> None:
    # Catches: labels at visible positions, special tokens hidden, an example without a label.
    rows = [sentence(str(i), n) for i, n in enumerate(lengths)]
    masked = mask_tokens(rows, MASK, SPECIAL, probability=probability, seed=seed)
    for before, after in zip(rows, masked, strict=True):
        old, new = before.inputs["input_ids"], after.inputs["input_ids"]
        assert after.id == before.id and after.labels is not None
        hidden = new == MASK
        assert hidden.any()
        assert torch.equal(after.labels, torch.where(hidden, old, -100))
        assert torch.equal(new[~hidden], old[~hidden])
        assert {int(new[0]), int(new[-1])} == {CLS, SEP}
        assert MASK not in old  # the original is untouched


def test_masks_depend_on_seed_and_id_only() -> None:
    # Catches: a stream, with which one more example changes the labels of all others.
    rows = [sentence(str(i), 40) for i in range(4)]
    together = mask_tokens(rows, MASK, SPECIAL, seed=3)
    (alone,) = mask_tokens(rows[2:3], MASK, SPECIAL, seed=3)
    assert torch.equal(alone.inputs["input_ids"], together[2].inputs["input_ids"])
    patterns = {tuple((e.inputs["input_ids"] == MASK).tolist()) for e in together}
    assert len(patterns) == 4
    (other,) = mask_tokens(rows[2:3], MASK, SPECIAL, seed=4)
    assert not torch.equal(other.inputs["input_ids"], alone.inputs["input_ids"])


def test_the_share_of_hidden_tokens() -> None:
    # Catches: probability ignored or inverted.
    rows = mask_tokens([sentence(str(i), 200) for i in range(50)], MASK, SPECIAL)
    share = sum(int((e.inputs["input_ids"] == MASK).sum()) for e in rows) / 10_000
    assert abs(share - 0.15) < 5 * (0.15 * 0.85 / 10_000) ** 0.5
    (every,) = mask_tokens([sentence("a", 9)], MASK, SPECIAL, probability=1.0)
    assert int((every.inputs["input_ids"] == MASK).sum()) == 9


def test_masks_are_independent_of_sampled_labels() -> None:
    # Catches: the same numbers for what is hidden and for what is drawn there: hidden positions
    # would always draw from the low end.
    (row,) = mask_tokens([sentence("a", 2000)], MASK, [CLS, SEP, MASK], seed=5)
    hidden = (row.inputs["input_ids"] == MASK).numpy()
    drawn = keyed_uniforms(5, ["a"], torch.arange(row.length)[None].numpy(), 0)[0]
    assert 0.4 < drawn[hidden].mean() < 0.6


def test_positions_that_are_not_attended_stay() -> None:
    # Catches: labels at positions that the model does not see.
    ids, attention = torch.arange(10, 20), torch.tensor([1, 0] * 5)
    example = Example("a", {"input_ids": ids, "attention_mask": attention})
    (row,) = mask_tokens([example], MASK, SPECIAL, probability=1.0)
    assert torch.equal(row.inputs["input_ids"] == MASK, attention == 1)
    assert torch.equal(row.inputs["attention_mask"], attention)


def test_unusable_examples_are_named() -> None:
    # Catches: an example without labels, or a KeyError.
    with pytest.raises(DataError, match="'empty' has no token that may be masked"):
        mask_tokens([sentence("a", 2), sentence("empty", 0)], MASK, SPECIAL)
    with pytest.raises(DataError, match="'image' has no sequence input_ids"):
        mask_tokens([Example("image", {"pixel_values": torch.ones(3, 2, 2)})], MASK, SPECIAL)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_probability_is_checked(probability: Any) -> None:
    # Catches: 15 taken for 15 %, NaN hiding nothing.
    with pytest.raises(ParameterError, match="probability"):
        mask_tokens([sentence("a", 2)], MASK, SPECIAL, probability=probability)
