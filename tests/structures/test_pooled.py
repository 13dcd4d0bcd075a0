"""The plain mean along a training run, against explicit scores."""

from __future__ import annotations

import numpy as np
import pytest

from fisherscope.errors import IdentityError
from fisherscope.structures import FisherEMA
from fisherscope.structures.pooled import pool, recent
from structures.fishers import SHAPES, build, same_bits, scores


# Catches: a second definition of the mean that drifts away from + where + is possible.
@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
@pytest.mark.parametrize("halves", [None, [[0, 2], [1]]])
def test_at_one_model_over_other_examples_it_is_addition(structure, halves):
    one, two = (
        build(scores(ids, seed=n), structure=structure, halves=halves)
        for n, ids in enumerate(["abc", "def"])
    )
    assert same_bits(pool(one, two), one + two)


# Catches: averages of averages (batches of unlike size), visits that are dropped or counted once.
@pytest.mark.parametrize("unit", ["example", "token"])
def test_every_visit_counts_once(unit):
    visits = [("abc", 0, "m"), ("d", 1, "m"), ("ab", 2, "n"), ("abc", 0, "n"), ("a", 3, "o")]
    parts = [
        build(scores(ids, seed=seed), unit=unit, model_fingerprint=model)
        for ids, seed, model in visits
    ]
    found = parts[0]
    for part in parts[1:]:
        found = pool(found, part)
    everything = [scores(ids, seed=seed) for ids, seed, _ in visits]
    tokens = sum(s.tokens.sum() for s in everything)
    count = tokens if unit == "token" else 10
    assert (found.n_examples, found.n_tokens, found.n_units) == (10, tokens, count)
    for name in SHAPES:
        expected = sum(s.squares[name].sum((0, 1)) for s in everything) / count
        np.testing.assert_allclose(found.means()[name], expected, rtol=1e-5)
    assert found.ledger.squares.sum() == pytest.approx(found.trace("sum"), rel=1e-5)
    assert set(found.ledger.ids) == {"a", "a#2", "a#3", "a#4", "b", "b#2", "b#3", "c", "c#2", "d"}


# Catches: intervals that shrink because the same batch was shown again and again.
def test_showing_the_same_examples_again_makes_nothing_more_certain():
    once = build(scores("abcdef"))
    often = once
    for _ in range(9):
        often = pool(often, once)
    assert often.n_examples == 60
    assert often.means()["a.bias"].numpy() == pytest.approx(once.means()["a.bias"].numpy())
    for name, error in often.standard_error().items():
        assert error == pytest.approx(once.standard_error()[name], rel=1e-6)
    assert often.bootstrap(np.sum, n=20).std() == pytest.approx(
        once.bootstrap(np.sum, n=20).std(), rel=1e-6
    )


# Catches: groups that the next, ungrouped batch wipes out.
def test_examples_stay_together_when_new_ones_follow():
    found = pool(pool(build(scores("abc")), build(scores("abc"))), build(scores("def", seed=1)))
    assert len(np.unique(found.ledger.groups)) == 6
    groups = dict(zip(found.ledger.ids, found.ledger.groups, strict=True))
    assert groups["a"] == groups["a#2"] != groups["b"]
    taken = found.ledger.take(["a", "a#2", "d"])
    assert len(np.unique(taken.groups)) == 2


# Catches: a run of one model that passes for another's, or two tasks of one run that don't match.
def test_the_fingerprint_names_the_sequence_of_weights():
    def run(models, first):
        parts = [
            build(scores([f"{first}{i}"], seed=i), model_fingerprint=m)
            for i, m in enumerate(models)
        ]
        found = parts[0]
        for part in parts[1:]:
            found = pool(found, part)
        return found.identity.model_fingerprint

    assert run("mm", "a") == "m"
    assert run("mno", "a") == run("mno", "b")
    assert run("mno", "a").startswith("run:")
    assert len({run(models, "a") for models in ("mno", "mon", "mn", "nm", "m", "n")}) == 6


@pytest.mark.parametrize("change", [{"unit": "token"}, {"fisher_type": "mc"}, {"seed": 1}])
def test_what_else_differs_is_refused_by_name(change):
    # Catches: a relaxation of law 5 that lets in more than weights and data.
    with pytest.raises(IdentityError, match=next(iter(change))):
        pool(build(scores("abc")), build(scores("abc"), **change))


def test_a_name_that_is_taken_is_not_given_to_a_visit():
    # Catches: a visit that collides with an example whose own name looks like one.
    one = build(scores(["a", "a#2"]))
    found = pool(one, build(scores(["a", "a#3"], seed=1)))
    assert set(found.ledger.ids) == {"a", "a#2", "a#3", "a#4"}


def test_halves_go_when_an_example_comes_again():
    # Catches: one example in both halves, which are then no halves.
    one = build(scores("abc"), halves=[[0, 2], [1]])
    assert pool(one, build(scores("abc", seed=1), halves=[[0], [1, 2]])).halves is None
    other = build(scores("def", seed=1), halves=[[0], [1, 2]], model_fingerprint="n")
    halves = pool(one, other).halves
    assert [half.n_examples for half in halves] == [3, 3]
    assert {half.identity.model_fingerprint[:4] for half in halves} == {"run:"}


# Catches: a moving average that carries the certainty of the plain mean.
def test_a_moving_average_as_a_fisher():
    ema = FisherEMA(0.5)
    parts = [build(scores(ids, seed=n)) for n, ids in enumerate(["abc", "def"])]
    for part in parts:
        ema.update(part)
    found = recent(ema, pool(*parts))
    for name, tensor in ema.corrected().items():
        np.testing.assert_allclose(found.means()[name], tensor, rtol=1e-6)
    assert (found.n_examples, found.n_units) == (6, 6)
    assert all(np.isnan(error) for error in found.standard_error().values())
