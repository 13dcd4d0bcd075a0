import numpy as np
import pytest

from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import Ledger
from structures.fishers import build, scores


def ledger(ids, **changes):
    n = len(ids)
    fields = {
        "ids": tuple(ids),
        "tensors": ("w", "b"),
        "squares": np.arange(2.0 * n).reshape(n, 2),
        "tokens": np.arange(n) + 1,
    }
    return Ledger(**{**fields, **changes})


def test_rows_are_ordered_by_id_and_stay_together():
    # Catches: sorting the ids without the rows, and "10" before "2".
    shuffled = ledger(["10", "2", "1"])
    assert shuffled.ids == ("1", "2", "10")
    assert shuffled.squares.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert shuffled.tokens.tolist() == [3, 2, 1]
    assert shuffled.frame().loc["10"].tolist() == [0, 1]
    assert list(shuffled.frame().columns) == ["w", "b"]


def test_addition_joins_every_array_and_does_not_depend_on_order():
    # Catches: dropping variances, mixing up rows, or a result in the order of summands.
    whole = build(scores("abcdef", draws=3), fisher_type="mc").ledger
    one, two = whole.take("ace"), whole.take("bdf")
    for joined in (one + two, two + one):
        assert joined.ids == whole.ids
        for name in ("squares", "tokens", "draw_variance", "draw_variance_total"):
            assert np.array_equal(getattr(joined, name), getattr(whole, name)), name


def test_variance_is_kept_only_if_both_have_it():
    # Catches: variances of some rows passing for those of all.
    one = ledger("ab", draw_variance=np.ones((2, 2)))
    assert (one + ledger("cd")).draw_variance is None
    assert (ledger("cd") + one).draw_variance is None


def test_shared_ids_are_named():
    # Catches: counting examples twice without a word.
    with pytest.raises(IdentityError, match=r"2 example ids.*'b', 'c'"):
        ledger("abc") + ledger("bcd")


def test_repeated_ids_are_named():
    # Catches: a ledger in which an id says nothing about a row.
    with pytest.raises(IdentityError, match="'a' occur more than once"):
        ledger(["a", "b", "a"])


def test_different_tensors_do_not_mix():
    # Catches: stacking columns that mean different things.
    with pytest.raises(IdentityError, match="'b', 'other'"):
        ledger("ab") + ledger("cd", tensors=("w", "other"))
    with pytest.raises(IdentityError, match="order"):
        ledger("ab") + ledger("cd", tensors=("b", "w"))


@pytest.mark.parametrize("name", ["squares", "tokens", "draw_variance", "draw_variance_total"])
def test_wrong_shapes_are_named(name):
    # Catches: an array of the wrong length being broadcast later.
    with pytest.raises(ParameterError, match=rf"ledger\.{name} has shape \(3, 3\)"):
        ledger("ab", **{name: np.ones((3, 3))})


def test_taking_unknown_rows_names_them():
    # Catches: a bare KeyError.
    assert ledger("abc").take(["c", "a"]).squares.tolist() == [[0, 1], [4, 5]]
    with pytest.raises(IdentityError, match="no examples 'z'"):
        ledger("abc").take("az")


def test_groups_survive_addition_to_rows_without():
    # Planted: groups kept only if both have them.
    grouped = ledger("ab", groups=np.array([0, 0]))
    assert (grouped + ledger("cd")).groups.tolist() == [0, 0, 1, 2]
    assert (ledger("ab") + ledger("cd", groups=np.array([0, 0]))).groups.tolist() == [0, 1, 2, 2]


def test_the_table_is_a_copy():
    # Planted: a table on the ledger's own memory.
    kept = ledger("ab")
    assert not np.shares_memory(kept.frame().to_numpy(), kept.squares)
