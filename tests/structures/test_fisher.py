import dataclasses
import math

import numpy as np
import pytest
import torch

from fisherscope.errors import DataError, IdentityError, ParameterError
from fisherscope.structures import Fisher
from structures.fishers import SHAPES, build, same_bits, scores

IDS = tuple("abcdefghijkl")


@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
@pytest.mark.parametrize("unit", ["example", "token", "position"])
@pytest.mark.parametrize("draws", [1, 3])
def test_denominators_and_traces_against_the_scores(structure, unit, draws):
    # Catches: draws forgotten or counted twice, units taken for examples, and a trace that
    # is not the sum of squares over parameters.
    of = scores(IDS, draws=draws)
    fisher = build(of, structure=structure, unit=unit, fisher_type="mc", dtype=torch.float64)
    tokens = int(of.tokens.sum())
    counts = {"example": 12, "token": tokens, "sum": 1}
    counts["unit"] = counts["example" if unit == "example" else "token"]
    for per, count in counts.items():
        assert fisher.denominator(per) == count * draws
        expected = {n: s.sum().item() / draws / count for n, s in of.squares.items()}
        assert fisher.traces(per) == pytest.approx(expected, rel=1e-12)
        assert fisher.trace(per) == pytest.approx(sum(expected.values()), rel=1e-12)
        mean = fisher.means(per)["a.bias"]
        assert torch.allclose(mean, of.squares["a.bias"].sum((0, 1)) / draws / count)


def test_draws_of_an_empirical_fisher_do_not_divide():
    # Catches: dividing by identity.draws although no label was drawn.
    fisher = build(scores(IDS), draws=5)
    assert fisher.draws == 1
    assert fisher.denominator() == 12


def test_unknown_per_and_empty_counts_raise():
    # Catches: a KeyError, and a division by zero that yields NaN.
    fisher = build(scores(IDS))
    with pytest.raises(ParameterError, match=r"per='batch'.*'unit'"):
        fisher.denominator("batch")  # pyright: ignore
    empty = build(scores(()), skipped=("a", "b"))
    with pytest.raises(DataError, match="2 examples were skipped"):
        empty.trace()


@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
def test_addition_equals_one_estimate_over_everything(structure):
    # Catches: means being averaged, counts or ledger rows being lost, and any dependence on
    # the order of summands (bit for bit for two of them).
    of = scores(IDS, draws=2)
    kind = {"structure": structure, "unit": "token", "fisher_type": "mc"}
    whole = build(of, **kind)
    parts = [build(of.take(rows), **kind) for rows in ([0, 5, 6, 7, 8], [1, 9], [2, 3, 4, 10, 11])]
    left = parts[0] + parts[1] + parts[2]
    right = parts[2] + (parts[1] + parts[0])
    assert same_bits(parts[0] + parts[1], parts[1] + parts[0])
    for joined in (left, right):
        assert joined.n_units == whole.n_units
        assert joined.n_examples == 12
        assert joined.coverage == whole.coverage
        assert joined.identity == whole.identity
        assert np.array_equal(joined.ledger.squares, whole.ledger.squares)
        for name in SHAPES:
            torch.testing.assert_close(joined.sums[name], whole.sums[name], rtol=3e-7, atol=0)
    assert left.standard_error() == whole.standard_error()


def test_sums_of_integers_add_exactly():
    # Catches: any division or rounding on the way in; integers have no rounding to hide in.
    of = scores(IDS)
    of = dataclasses.replace(of, squares={n: (9 * s).round() for n, s in of.squares.items()})
    joined = build(of.take(slice(0, 5))) + build(of.take(slice(5, 12)))
    assert all(torch.equal(joined.sums[n], build(of).sums[n]) for n in SHAPES)


def test_addition_does_not_touch_its_summands():
    # Catches: adding in place.
    one, two = build(scores("ab")), build(scores("cd", seed=1))
    before = {n: s.clone() for n, s in one.sums.items()}
    total = one + two
    total.sums["a.bias"].zero_()
    assert all(torch.equal(one.sums[n], before[n]) for n in SHAPES)


def test_shared_examples_raise_also_among_the_skipped():
    # Catches: counting an example twice, or as skipped and as used.
    with pytest.raises(IdentityError, match="'b'"):
        build(scores("ab")) + build(scores("bc"))
    with pytest.raises(IdentityError, match="'c'"):
        build(scores("ab"), skipped=("c",)) + build(scores("cd"))
    joined = build(scores("ab"), skipped=("z",)) + build(scores("cd"), skipped=("y",))
    assert joined.skipped == ("y", "z")


def test_unlike_fishers_do_not_add():
    # Catches: combining across models, structures or parameters, and groups that broadcast to
    # an outer sum.
    one = build(scores("ab"))
    with pytest.raises(IdentityError, match="model_fingerprint is 'm' and 'n'"):
        one + build(scores("cd"), model_fingerprint="n")
    with pytest.raises(IdentityError, match="structure"):
        one + build(scores("cd"), structure="grouped")
    with pytest.raises(IdentityError, match="'a.bias' is"):
        one + build(scores("cd", shapes={"a.weight": (3, 4)}))
    rows, columns = (build(scores(ids), structure="grouped") for ids in ("ab", "cd"))
    turned = {**columns.sums, "square.weight": columns.sums["square.weight"].T.contiguous()}
    with pytest.raises(IdentityError, match=r"'square.weight' is grouped as \(1, 4\)"):
        rows + dataclasses.replace(columns, sums=turned)
    with pytest.raises(ParameterError, match="dict"):
        one + {}  # pyright: ignore


def test_halves_add_half_by_half():
    # Catches: halves that overlap the other half after addition, or halves of one summand
    # passing for halves of the sum.
    of = scores(IDS)
    one = build(of.take(slice(0, 6)), halves=([0, 2, 4], [1, 3, 5]))
    two = build(of.take(slice(6, 12)), halves=([0, 1, 2], [3, 4, 5]))
    joined = one + two
    assert joined.halves is not None
    assert joined.halves[0].ledger.ids == tuple("aceghi")
    assert joined.halves[1].ledger.ids == tuple("bdfjkl")
    both = joined.halves[0] + joined.halves[1]
    for name in SHAPES:
        torch.testing.assert_close(both.sums[name], joined.sums[name], rtol=3e-7, atol=0)
    assert (one + build(of.take(slice(6, 12)))).halves is None
    assert (build(of.take(slice(6, 12))) + one).halves is None


def test_rules_that_differ_are_both_named():
    # Catches: the first summand's rule covering up the other's.
    one, two = build(scores("ab")), build(scores("cd"))
    slow = dataclasses.replace(two, coverage={**two.coverage, "a.bias": "autograd"})
    assert (one + slow).coverage["a.bias"] == (slow + one).coverage["a.bias"] == "autograd + linear"


def test_inconsistent_parts_are_refused():
    # Catches: tensors without an identity, half-precision sums, and a ledger in another order.
    fisher = build(scores("ab"))
    with pytest.raises(ParameterError, match=r"a\.bias"):
        dataclasses.replace(fisher, sums={n: s for n, s in fisher.sums.items() if n != "a.bias"})
    with pytest.raises(ParameterError, match=r"sums\['a.weight'\] is torch.bfloat16"):
        dataclasses.replace(fisher, sums={n: s.bfloat16() for n, s in fisher.sums.items()})
    backwards = dataclasses.replace(fisher.ledger, tensors=fisher.ledger.tensors[::-1])
    with pytest.raises(ParameterError, match="same order"):
        dataclasses.replace(fisher, ledger=backwards)
    with pytest.raises(IdentityError, match="DiagonalFisher"):
        dataclasses.replace(
            fisher, identity=dataclasses.replace(fisher.identity, structure="grouped")
        )
    with pytest.raises(ParameterError, match="'hessian'.*'diagonal'"):
        Fisher.of_structure("hessian")


def test_frame_has_a_row_per_tensor_with_its_uncertainty():
    # Catches: columns computed from different tensors or denominators.
    of = scores(IDS)
    fisher = build(of, dtype=torch.float64)
    frame = fisher.to_frame().set_index("tensor")
    assert list(frame.index) == list(SHAPES)
    x = of.squares["a.weight"].sum((1, 2, 3)).numpy()
    row = frame.loc["a.weight"]
    assert row["n_parameters"] == 12
    assert row["trace"] == pytest.approx(x.mean())
    assert row["se"] == pytest.approx(x.std(ddof=1) / math.sqrt(12))
    assert row["mean"] == pytest.approx(x.mean() / 12)
    assert row["log10_mean"] == pytest.approx(math.log10(x.mean() / 12))
    assert row["relative_se"] == pytest.approx(row["se"] / row["trace"])
    assert row["rule"] == "linear"


def test_notebook_view_escapes_names():
    # Catches: text from a model or a task running as HTML.
    fisher = build(scores("ab", shapes={"<script>x": (2,)}), fisher_type="<script>y")
    page = fisher._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;x" in page
    assert "2 examples" in page
