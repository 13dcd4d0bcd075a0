"""EKFAC over several data sets in one eigenbasis, in halves, and what is refused."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from oracles import models
from oracles.runs import Stop, estimate, same, stop_at

OPTIONS = {
    "empirical": {},
    "token": {"unit": "token"},
    "position": {"unit": "position"},
    "mc": {"fisher_type": "mc", "draws": 2, "seed": 3},
}


# Would catch: a basis estimated anew on each part, sums divided on the way, the basis taken for
# a sum (twice the eigenvectors), draws keyed by place. Planted: basis= ignored.
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("structure", ["ekfac", "ekfac(bias=separate)", "ekfac(widest=5)"])
@pytest.mark.parametrize("name", ["tiny-lora", "tiny-llama-tied", "mlp-regression"])
def test_parts_in_one_basis_add_up_to_the_whole(name, structure, options):
    case = models.case(name)
    kfac = estimate(case, case.rows, structure=structure[1:])
    options = {**options, "structure": structure, "basis": kfac}
    whole = estimate(case, case.rows, **options)
    first = estimate(case, case.rows[1:], **options)
    second = estimate(case, case.rows[:1], **options)
    same(first + second, whole)
    same(second + first, whole)
    basis = kfac.eigenbasis()
    assert all(torch.equal(whole.sums[key], q) for key, q in basis.items())


# Would catch: an own basis that is not the one which the two steps by hand have.
def test_without_a_basis_one_is_estimated_on_the_same_data():
    case = models.case("tiny-gpt2")
    options = {"fisher_type": "mc", "seed": 2}
    kfac = estimate(case, case.rows, structure="kfac", **options)
    by_hand = estimate(case, case.rows, structure="ekfac", basis=kfac, **options)
    once = estimate(case, case.rows, structure="ekfac", **options)
    assert all(torch.equal(once.sums[key], total) for key, total in by_hand.sums.items())
    assert (once.ledger.squares == by_hand.ledger.squares).all()


# Would catch: halves with bases of their own, which could not be added; halves that are not what
# their examples alone give in that basis; a whole that is not their sum.
@pytest.mark.parametrize("name", ["tiny-gpt2", "mlp"])
def test_halves_share_the_basis_of_the_whole(name):
    case = models.case(name)
    kfac = estimate(case, case.rows, structure="kfac")
    fisher = estimate(case, case.rows, structure="ekfac", halves=True)
    same(fisher, estimate(case, case.rows, structure="ekfac"))
    assert fisher.halves is not None
    for half in fisher.halves:
        mine = [row for row in case.rows if row.id in half.ledger.ids]
        assert 0 < len(mine) < len(case.rows)
        same(half, estimate(case, mine, structure="ekfac", basis=kfac))
    joined = fisher.halves[0] + fisher.halves[1]
    assert joined.trace() == pytest.approx(fisher.trace(), rel=1e-9)


# Would catch: eigenvalues in a basis that means nothing for these parameters, options of the
# structure that are silently those of the basis.
@pytest.mark.parametrize(
    ("other", "options", "error", "said"),
    [
        ("tiny-llama-tied", {}, fs.IdentityError, "parameters differs"),
        ("moved", {}, fs.IdentityError, "model_fingerprint differs"),
        ("tiny-gpt2", {"parameters": "*mlp*"}, fs.IdentityError, "parameters differs"),
        ("tiny-gpt2", {"structure": "ekfac(widest=3)"}, fs.ParameterError, "same options"),
        ("tiny-gpt2", {"structure": "ekfac(bias=separate)"}, fs.ParameterError, "same options"),
        ("tiny-gpt2", {"structure": "diagonal"}, fs.ParameterError, "for structure='ekfac'"),
    ],
)
def test_a_foreign_basis_is_refused(other, options, error, said):
    case = models.case("tiny-gpt2")
    theirs = models.fresh("tiny-gpt2") if other == "moved" else models.case(other)
    if other == "moved":
        with torch.no_grad():
            theirs.model.transformer.h[0].mlp.c_fc.bias[0] += 1e-3  # type: ignore[index]
    kfac = estimate(theirs, theirs.rows, structure="kfac")
    with pytest.raises(error, match=said):
        estimate(case, case.rows, basis=kfac, **{"structure": "ekfac", **options})


def test_only_a_kfac_is_a_basis():
    case = models.case("mlp")
    for wrong in (
        estimate(case, case.rows),
        estimate(case, case.rows, structure="ekfac"),
        object(),
    ):
        with pytest.raises(fs.ParameterError, match="pass a Fisher of 'kfac'"):
            estimate(case, case.rows, structure="ekfac", basis=wrong)


# Would catch: an estimate that starts again for ever, because these data need the slow path for
# a layer that has factors in the basis.
def test_a_basis_over_data_that_showed_less():
    case = models.fresh("experts")
    kfac = estimate(case, case.rows[:1], structure="kfac", batch_size=1)
    stop_at(case.model, 300, Stop)
    with pytest.raises(fs.CoverageError, match=r"experts.0.weight.*over these data too"):
        estimate(case, case.rows, structure="ekfac", basis=kfac, batch_size=9)
