"""Hashes, halves and keyed random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fisherscope.data import (
    Example,
    content_hash,
    content_id,
    fingerprint,
    halves,
    keyed_uniforms,
)
from fisherscope.errors import DataError, ParameterError


def make(count: int, start: int = 0) -> list[Example]:
    return [
        Example(str(i), {"input_ids": torch.arange(i % 5 + 1)}, torch.tensor(i))
        for i in range(start, start + count)
    ]


def test_hash_sees_every_part() -> None:
    # Catches: a part left out of the hash, or parts run together without their lengths.
    x = torch.tensor([1, 2, 3, 4])
    variants = [
        Example("a", {"x": x}, x),
        Example("b", {"x": x}, x),
        Example("a", {"y": x}, x),
        Example("a", {"x": x.int()}, x),
        Example("a", {"x": x.reshape(2, 2)}, x),
        Example("a", {"x": x + 1}, x),
        Example("a", {"x": x}, x + 1),
        Example("a", {"x": x}, None),
        Example("a", {"x": x, "labels": x}, None),
        Example("ax", {"": x}, x),
        Example("a", {"x": torch.tensor([1.0, 2.0]).bfloat16()}),
        Example("a", {"x": torch.tensor([1.0, 2.0]).half()}),
        Example("a", {"x": torch.tensor([True, False])}),
    ]
    hashes = [content_hash(example) for example in variants]
    assert len(set(hashes)) == len(variants)
    assert all(0 <= value < 2**128 for value in hashes)


def test_hash_is_about_content() -> None:
    # Catches: the order of a dict or the memory layout in the hash, which would tell equal data
    # apart.
    x, y = torch.arange(6).reshape(2, 3), torch.ones(2)
    one = Example("a", {"x": x, "y": y})
    other = Example("a", {"y": y.clone(), "x": x.t().contiguous().t()})
    assert not other.inputs["x"].is_contiguous()
    assert content_hash(one) == content_hash(other)


def test_hash_is_the_same_everywhere() -> None:
    # Catches: Python's salted hash(), or a change of the format that would orphan stored files.
    example = Example("a", {"input_ids": torch.tensor([1, 2])}, torch.tensor(1))
    assert content_hash(example) == FROZEN_HASH
    assert fingerprint([example]) == f"{FROZEN_HASH:032x}"


def test_ids_with_half_characters_can_be_hashed() -> None:
    # Catches: a UnicodeEncodeError for an id that Python itself accepts.
    assert content_hash(Example("\ud800", {})) != content_hash(Example("\ud801", {}))


def test_content_names_see_everything_but_the_id() -> None:
    # Catches: a part left out of the name, so that two examples share one; the id within it.
    x = torch.tensor([1, 2])
    variants = [
        Example("", {"x": x}, x),
        Example("", {"y": x}, x),
        Example("", {"x": x.int()}, x),
        Example("", {"x": x[None]}, x),
        Example("", {"x": x + 1}, x),
        Example("", {"x": x}, x + 1),
        Example("", {"x": x}),
        Example("", {"x": x, "labels": x}),
    ]
    names = [content_id(example) for example in variants]
    assert len(set(names)) == len(variants)
    assert [content_id(Example("b", e.inputs, e.labels)) for e in variants] == names
    # The same everywhere and for ever: the names key the drawn labels of stored estimates.
    example = Example("a", {"input_ids": torch.tensor([1, 2])}, torch.tensor(1))
    assert content_id(example) == FROZEN_NAME


@given(split=st.integers(0, 9), seed=st.randoms(use_true_random=False))
def test_fingerprints_add_up(split: int, seed: object) -> None:
    # Catches: a fingerprint that depends on order or cannot be combined from parts.
    rows = make(9)
    seed.shuffle(rows)  # type: ignore[attr-defined]
    parts = [int(fingerprint(part), 16) for part in (rows[:split], rows[split:])]
    assert int(fingerprint(make(9)), 16) == sum(parts) % 2**128
    assert len(fingerprint([])) == 32


@given(count=st.integers(2, 25), seed=st.randoms(use_true_random=False))
def test_halves_are_balanced_disjoint_and_ignore_the_order(count: int, seed: object) -> None:
    # Catches: odd/even by position, a lost middle example, halves that follow the input.
    rows = make(count)
    first, second = halves(rows)
    assert 0 <= len(first) - len(second) <= 1
    assert sorted(e.id for e in first + second) == sorted(e.id for e in rows)
    seed.shuffle(rows)  # type: ignore[attr-defined]
    assert [[e.id for e in half] for half in halves(rows)] == [
        [e.id for e in half] for half in (first, second)
    ]


def test_halves_do_not_follow_id_or_length() -> None:
    # Catches: a split by rank of the id, which sorts data by whatever the ids encode.
    first, second = halves(make(400))
    numbers = [[int(e.id) for e in half] for half in (first, second)]
    assert stats.ks_2samp(*numbers).pvalue > 1e-4


def test_one_example_has_no_halves() -> None:
    # Catches: an empty half, whose Fisher would be 0/0.
    with pytest.raises(DataError, match="at least two"):
        halves(make(1))


@given(
    rows=st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True),
    width=st.integers(1, 8),
    seed=st.integers(-(2**70), 2**70),
    draw=st.integers(0, 5),
)
def test_numbers_depend_on_their_key_only(
    rows: list[int], width: int, seed: int, draw: int
) -> None:
    # Catches: a stream (numbers would change with the batch), a width that shifts the rows.
    ids = [str(row) for row in rows]
    positions = np.tile(np.arange(width), (len(ids), 1))
    table = keyed_uniforms(seed, ids, positions, draw)
    assert table.shape == positions.shape and table.dtype == np.float64
    assert ((table >= 0) & (table < 1)).all()
    for index, name in enumerate(ids):
        for position in range(width):
            alone = keyed_uniforms(seed, [name], np.array([[position]]), draw)
            assert alone[0, 0] == table[index, position]


def test_every_part_of_the_key_counts() -> None:
    # Catches: keys combined by a sum, so that (position 1, draw 0) equals (position 0, draw 1).
    positions = np.arange(40)[None]
    tables = [
        keyed_uniforms(seed, [name], positions, draw)
        for seed in range(-2, 5)
        for name in ("a", "b", "0", "1", "")
        for draw in range(7)
    ]
    values = np.concatenate(tables, axis=None)
    assert len(np.unique(values)) == values.size


@pytest.mark.parametrize("axis", ["seed", "id", "position", "draw"])
def test_numbers_are_uniform_and_uncorrelated_along_each_part(axis: str) -> None:
    # Catches: a weak mixing, where neighbouring seeds, ids, positions or draws are alike.
    n = 4000
    here = np.zeros((1, 1), dtype=np.int64)
    values = {
        "seed": lambda: np.array([keyed_uniforms(s, ["a"], here, 0)[0, 0] for s in range(n)]),
        "id": lambda: keyed_uniforms(0, [str(i) for i in range(n)], np.tile(here, (n, 1)), 0)[:, 0],
        "position": lambda: keyed_uniforms(0, ["a"], np.arange(n)[None], 0)[0],
        "draw": lambda: np.array([keyed_uniforms(0, ["a"], here, d)[0, 0] for d in range(n)]),
    }[axis]()
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    for lag in (1, 2, 8):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / np.sqrt(n)


def test_numbers_are_the_same_everywhere() -> None:
    # Catches: a change of the generator, after which a stored estimate cannot be repeated.
    table = keyed_uniforms(7, ["a", "b"], np.array([[0, 1], [0, 1]]), 1)
    np.testing.assert_array_equal(table, FROZEN_UNIFORMS)


@pytest.mark.parametrize(
    "positions", [np.zeros(2, dtype=int), np.zeros((3, 1), dtype=int), np.zeros((2, 1))]
)
def test_positions_are_checked(positions: np.ndarray) -> None:
    # Catches: positions broadcast over the wrong axis.
    with pytest.raises(ParameterError, match="positions"):
        keyed_uniforms(0, ["a", "b"], positions, 0)


FROZEN_NAME = "195354528fdb79b1"
FROZEN_HASH = 0xC45E74ABF92EEE8715348529A9CA73FD
FROZEN_UNIFORMS = [[0.74824652768184, 0.5968335118858124], [0.8263208118610176, 0.2746795277636809]]
