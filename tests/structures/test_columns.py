"""Fishers of parts of the parameters, side by side."""

import dataclasses

import numpy as np
import pytest

from fisherscope.errors import IdentityError
from fisherscope.structures.columns import beside
from structures.fishers import SHAPES, build, same_bits, scores


def parts(whole, *names):
    taken = [
        build(dataclasses.replace(whole, squares={n: whole.squares[n] for n in some}))
        for some in names
    ]
    return taken, build(whole)


def test_columns_stand_under_their_names_whatever_the_order_of_the_parts():
    # Catches: columns of the ledger in the order in which the parts were estimated.
    first, last = ("a.weight", "square.weight"), ("a.bias",)  # not the order of the model
    for some in ((first, last), (last, first)):
        taken, whole = parts(scores("abcd"), *some)
        joined = beside(taken, whole.identity)
        assert joined.ledger.tensors == tuple(SHAPES)
        np.testing.assert_array_equal(joined.ledger.squares, whole.ledger.squares)
        assert same_bits(dataclasses.replace(joined, sums=whole.sums), whole)
        assert all((joined.sums[n] == whole.sums[n]).all() for n in SHAPES)


def test_parts_over_other_examples_are_refused():
    # Catches: rows of unlike examples in one ledger.
    (one, _), whole = parts(scores("abcd"), ("a.weight", "square.weight"), ("a.bias",))
    (_, other), _ = parts(scores("abce"), ("a.weight", "square.weight"), ("a.bias",))
    with pytest.raises(IdentityError, match="different examples"):
        beside([one, other], whole.identity)
