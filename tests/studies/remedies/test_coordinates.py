"""Masks on hand-made diagonals."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope.studies.remedies.coordinates import frozen, guided, largest, pooled, shuffled

OLD = {"a": torch.tensor([[4.0, 0.0], [1.0, 3.0]]), "b": torch.tensor([9.0, 0.5])}


def test_the_top_coordinates_are_frozen_by_scope():
    # Catches a mask that is true where a weight is frozen, shares of the wrong whole, and a
    # tensor that is left out, which would move as a whole.
    everywhere = frozen(OLD, 1 / 3, "global")
    assert everywhere["a"].tolist() == [[False, True], [True, True]]
    assert everywhere["b"].tolist() == [False, True]
    each = frozen(OLD, 0.5, "tensor")
    assert each["a"].tolist() == [[False, True], [True, False]]
    assert each["b"].tolist() == [False, True]


def test_the_mask_takes_what_the_new_task_needs_and_the_old_do_not():
    # Catches the ratio the other way up, and a coordinate that neither needs.
    new = {"a": torch.tensor([2.0, 2.0, 0.001, 0.0])}
    old = {"a": torch.tensor([3.0, 0.0, 0.0, 1.0])}
    assert guided(new, old, 0.25, "global")["a"].tolist() == [False, True, False, False]
    assert guided(new, old, 0.5, "global")["a"].tolist() == [True, True, False, False]
    # Without old tasks it is the FISH mask: the largest of the new task's Fisher.
    none = {"a": torch.zeros(4)}
    assert guided(new, none, 0.5, "global")["a"].tolist() == [True, True, False, False]


def test_random_masks_have_the_same_size_in_every_tensor():
    # Catches sizes that are equal in all only, and one choice for all seeds or all tensors.
    torch.manual_seed(0)
    masks = {"a": torch.rand(30, 7) < 0.2, "b": torch.rand(210) < 0.6, "c": torch.ones(4).bool()}
    first, second = shuffled(masks, 0), shuffled(masks, 1)
    for name, mask in masks.items():
        assert first[name].shape == mask.shape
        assert int(first[name].sum()) == int(mask.sum()) == int(second[name].sum())
    assert not torch.equal(first["a"], masks["a"]) and not torch.equal(first["a"], second["a"])
    assert all(torch.equal(first[n], t) for n, t in shuffled(masks, 0).items())


def test_a_random_choice_does_not_know_the_mask():
    # Catches a null that keeps part of what it is held against: a tenth of 10,000 coordinates
    # has a tenth in common with another by chance (standard deviation 0.009).
    mask = {"a": torch.arange(10_000) < 1000}
    assert abs(float(shuffled(mask, 3)["a"][:1000].double().mean()) - 0.1) < 0.04


def test_shares_are_rounded_but_never_to_nothing():
    assert int(largest({"a": torch.arange(10.0)}, 0.01, "global")["a"].sum()) == 1
    assert largest({"a": torch.arange(10.0)}, 0.25, "tensor")["a"].sum() == 2


def test_every_task_weighs_alike():
    # Catches a mean over tasks in which the one with the sharper predictions decides alone.
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    x, y = torch.randn(12, 3), torch.randint(2, (12,))
    one = fs.estimate(model, (x, y), progress=False)
    sharp = fs.estimate(model, (100 * x, y), progress=False)
    names = ["weight", "bias"]
    together = pooled([one, sharp], names)
    alone = [pooled([fisher], names) for fisher in (one, sharp)]
    for name in names:
        torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2)
    total = sum(float(t.sum()) for t in together.values())
    assert total == pytest.approx(8)


def test_a_fisher_of_nothing_is_refused():
    model = torch.nn.Linear(3, 2, bias=False)
    zero = fs.estimate(model, (torch.zeros(4, 3), torch.randint(2, (4,))), progress=False)
    with pytest.raises(fs.ParameterError, match="zero at every weight"):
        pooled([zero], ["weight"])
