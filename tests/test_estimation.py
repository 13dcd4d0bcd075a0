"""The loop over data: adding up, halves, non-finite examples, options."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisherscope as fs
from fisherscope import estimation
from oracles import brute, models, nets, rows
from oracles.checks import check, compare
from oracles.runs import Stop, estimate, poisoned, same, stop_at

STRUCTURES = ("diagonal", "grouped")
OPTIONS = {
    "empirical": {},
    "token": {"unit": "token"},
    "mc": {"fisher_type": "mc", "draws": 3, "seed": 2},
}


# Would catch: means kept instead of sums, counts of batches instead of examples, draws keyed by
# place in the data, a fingerprint that depends on the order.
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["llama-tied", "layerscale"])
def test_parts_add_up_to_the_whole(name, structure, options):
    case = models.case(name)
    whole = estimate(case, case.rows, structure=structure, **options)
    first = estimate(case, case.rows[1::2], structure=structure, **options)
    second = estimate(case, case.rows[::2], structure=structure, batch_size=2, **options)
    same(first + second, whole)
    same(second + first, whole)


# Would catch: a mean that is not one (it must not change), sums that are not (they double).
@pytest.mark.parametrize("options", [{}, {"unit": "token"}, {"unit": "position"}])
def test_examples_repeated_under_new_ids_count_twice(options):
    case = models.case("gpt2")
    twice = [*case.rows, *(dataclasses.replace(row, id=f"{row.id}-again") for row in case.rows)]
    once, double = estimate(case, case.rows, **options), estimate(case, twice, **options)
    assert double.n_units == 2 * once.n_units and double.n_tokens == 2 * once.n_tokens
    for name, total in once.sums.items():
        torch.testing.assert_close(double.sums[name], 2 * total, rtol=1e-4, atol=1e-9)
    for per in ("unit", "example", "token"):
        assert double.trace(per) == pytest.approx(once.trace(per), rel=1e-5)
    assert double.identity.data_fingerprint != once.identity.data_fingerprint


# Would catch: labels drawn by content or by place rather than by id.
def test_repeated_examples_draw_labels_of_their_own():
    case = models.case("mlp")
    twice = [*case.rows, *(dataclasses.replace(row, id=f"{row.id}-again") for row in case.rows)]
    fisher = estimate(case, twice, fisher_type="mc")
    squares = dict(zip(fisher.ledger.ids, fisher.ledger.squares[:, 0], strict=True))
    differ = [squares[row.id] != squares[f"{row.id}-again"] for row in case.rows]
    assert any(differ)


# Would catch: halves that overlap or leave examples out, that depend on the order of the data,
# or whose sums are not those of their examples alone.
@pytest.mark.parametrize("structure", STRUCTURES)
def test_halves_add_up_and_are_estimates_of_their_own(structure):
    case = models.case("gpt2")
    fisher = estimate(case, case.rows, structure=structure, halves=True)
    first, second = fisher.halves
    assert len(first.ledger) + len(second.ledger) == len(case.rows)
    assert abs(len(first.ledger) - len(second.ledger)) <= 1
    same(fisher, estimate(case, case.rows, structure=structure))
    for half in fisher.halves:
        mine = [row for row in case.rows if row.id in half.ledger.ids]
        same(half, estimate(case, mine, structure=structure))
    again = estimate(case, case.rows[::-1], structure=structure, halves=True)
    assert again.halves[0].ledger.ids == first.ledger.ids


# -- examples that are not finite ---------------------------------------------------------


# Would catch: NaN in the sums without a word, or blamed on the whole batch.
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_raises_with_the_id_of_the_example(size, value):
    case = models.case("mlp-regression")
    data = [rows.Row(r.id, r.inputs, r.labels * value) if r.id == "row-3" else r for r in case.rows]
    with pytest.raises(fs.NonFiniteError, match="'row-3'") as raised:
        estimate(case, data, batch_size=size)
    assert "row-2" not in str(raised.value) and "skip" in str(raised.value)


# Would catch: a batch thrown away for one example of it; partial sums of a bad batch kept; a
# bad example counted.
@pytest.mark.parametrize("name", ["resnet", "layerscale", "mlp-regression"])
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_skips_and_reports_what_is_not_finite(name, size, structure):
    case = models.case(name)
    bad = {"row-1", "row-4"}
    data = poisoned(case, bad)
    options = {"on_nonfinite": "skip", "batch_size": size, "structure": structure}
    fisher = estimate(case, data, **options)
    good = [row for row in case.rows if row.id not in bad]
    expected, _ = brute.diagonal(brute.twin(name), good, case.likelihood)
    if structure == "grouped":
        expected = brute.rows_summed(case.model, expected)
    compare(fisher.sums, expected)
    assert set(fisher.skipped) == bad and not bad & set(fisher.ledger.ids)
    assert fisher.n_examples == fisher.n_units == len(good)
    clean = estimate(case, good, structure=structure)
    assert clean.identity.data_fingerprint != fisher.identity.data_fingerprint


# Would catch: a division by zero examples, or a silent Fisher of nothing.
def test_nothing_finite_at_all():
    case = models.case("mlp")
    data = poisoned(case, {row.id for row in case.rows})
    fisher = estimate(case, data, on_nonfinite="skip")
    assert fisher.n_examples == 0 and set(fisher.skipped) == {row.id for row in case.rows}
    with pytest.raises(fs.DataError, match="skipped"):
        fisher.trace()
    with pytest.raises(fs.NonFiniteError, match="row-"):
        estimate(case, data)


# Would catch: a broken checkpoint found out after an hour, or not at all.
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    case = models.fresh("mlp")
    count = stop_at(case.model, 0, Stop)
    with torch.no_grad():
        case.model.second.weight[2, 3] = value
    with pytest.raises(fs.NonFiniteError, match="second.weight"):
        estimate(case, case.rows)
    assert count[0] == 0


# Would catch: large but finite weights whose sum overflows taken for broken ones.
def test_weights_whose_sum_overflows_are_finite():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3e38, 3e38], [0.0, 0.0]]))
    data = (torch.tensor([[1e-38, 0.0]]), torch.tensor([1]))
    assert np.isfinite(fs.estimate(model, data, progress=False).trace())


# -- what is asked for --------------------------------------------------------------------


# Would catch: an option that is ignored, a typing error that is read as the default.
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"structure": "diag"}, "diagonal"),
        ({"unit": "sequence"}, "example, token, position"),
        ({"fisher_type": "true"}, "mc"),
        ({"on_nonfinite": "ignore"}, "skip"),
        ({"draws": 0}, "draws=0"),
        ({"draws": True}, "draws=True"),
        ({"draws": None}, "draws=None"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"max_examples": -1}, "max_examples=-1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"parameters": "hed.*"}, "head"),
        ({"parameters": ["head.*", "nothing"]}, "nothing"),
    ],
)
def test_options_that_make_no_sense(options, said):
    case = models.fresh("mlp")
    count = stop_at(case.model, 0, Stop)
    with pytest.raises(fs.ParameterError, match=said.replace("*", r"\*")):
        estimate(case, case.rows, **options)
    assert count[0] == 0


# Would catch: a tied tensor listed twice, or not found under its second name.
@pytest.mark.parametrize("pattern", ["lm_head.weight", "model.embed_tokens.weight", "*embed*"])
def test_a_tied_tensor_is_found_under_each_of_its_names(pattern):
    case = models.case("llama-tied")
    fisher = estimate(case, case.rows, parameters=pattern)
    assert list(fisher.sums) == ["model.embed_tokens.weight"]
    check(fisher, "llama-tied")


def test_patterns_select_whole_names_in_the_order_of_the_model():
    case = models.case("llama-untied")
    fisher = estimate(case, case.rows, parameters=["*norm*", "*layers.1.mlp*"])
    everything = [n for n, _ in case.model.named_parameters()]
    assert list(fisher.sums) == [n for n in everything if "norm" in n or "layers.1.mlp" in n]
    check(fisher, "llama-untied")


# Would catch: quantised weights left out without a word although they were asked for.
def test_weights_that_have_no_score():
    case = models.fresh("mlp")
    codes = torch.zeros(3, dtype=torch.int8)
    case.model.register_parameter("codes", nn.Parameter(codes, requires_grad=False))
    assert "codes" not in estimate(case, case.rows).sums
    with pytest.raises(fs.CoverageError, match="codes"):
        estimate(case, case.rows, parameters=["head.*", "cod*"])


# Would catch: rounding that depends on what else is estimated.
def test_asking_for_less_changes_nothing():
    case = models.case("gpt2")
    whole = estimate(case, case.rows)
    part = estimate(case, case.rows, parameters="*mlp*")
    assert all(torch.equal(whole.sums[n], total) for n, total in part.sums.items())


# Would catch: labels of the data used where labels are drawn.
def test_drawn_labels_need_no_labels_and_do_not_look_at_them():
    case = models.case("mlp")
    x = torch.stack([row.inputs["0"] for row in case.rows])
    # A name taken from the content would differ with the labels, and names key the draws.
    inputs = {"0": x, "id": [row.id for row in case.rows]}
    options = {"fisher_type": "mc", "likelihood": "classification", "progress": False}
    bare = fs.estimate(case.model, inputs, **options)
    for labels in (torch.zeros(6, dtype=torch.long), torch.arange(6) % 4):
        labelled = fs.estimate(case.model, {**inputs, "labels": labels}, **options)
        assert all(torch.equal(labelled.sums[n], bare.sums[n]) for n in bare.sums)
    with pytest.raises(fs.DataError, match="no labels"):
        fs.estimate(case.model, x, likelihood="classification", progress=False)


# Would catch: a language model without labels refused, or scored on its padding.
def test_text_without_labels_is_supervised_everywhere():
    case = models.case("gpt2")
    data = [dataclasses.replace(row, labels=row.inputs["input_ids"]) for row in case.rows]
    batch = rows.padded(data, left=False)
    batch.pop("labels")
    fisher = fs.estimate(case.model, batch, progress=False)
    expected, _ = brute.diagonal(brute.twin("gpt2"), data, "causal-lm")
    compare(fisher.sums, expected)


def test_the_same_seed_gives_the_same_bits():
    case = models.case("bert")
    options = {"fisher_type": "mc", "draws": 2}
    one, same_seed = (estimate(case, case.rows, seed=4, **options) for _ in range(2))
    other = estimate(case, case.rows, seed=5, **options)
    assert all(torch.equal(one.sums[n], same_seed.sums[n]) for n in one.sums)
    assert not all(torch.equal(one.sums[n], other.sums[n]) for n in one.sums)


# Would catch: seeds and draws in the identity of an estimate that knows none, so that equal
# estimates could not be added.
def test_identity_before_and_after():
    case = models.case("gpt2")
    data = rows.examples(case.rows)
    for options in ({}, {"fisher_type": "mc", "draws": 2, "seed": 3}, {"parameters": "*mlp*"}):
        fisher = fs.estimate(case.model, data, progress=False, **options)
        assert estimation.identity(case.model, data, **options) == fisher.identity
    assert estimation.identity(case.model, data, seed=3).seed == 0
    assert fisher.identity.dtype == "float32"


def test_the_first_examples_only():
    case = models.case("mlp")
    same(estimate(case, case.rows, max_examples=4), estimate(case, case.rows[:4]))


# Would catch: kinds of data read in another way.
def test_tensors_and_loaders_give_the_same_as_examples():
    case = models.case("mlp")
    x = torch.stack([row.inputs["0"] for row in case.rows])
    y = torch.stack([row.labels for row in case.rows])
    expected = brute.reference("mlp", "example")[0]
    for data in ((x, y), DataLoader(TensorDataset(x, y), batch_size=4)):
        compare(fs.estimate(case.model, data, progress=False).sums, expected)


def loader(name, *, shuffled=None, size=2):
    """Batches of raw rows, without ids, padded as far as each batch needs."""
    data = rows.examples(models.case(name).rows)
    g = None if shuffled is None else torch.Generator().manual_seed(shuffled)

    def collate(some):
        width = max(e.length for e in some)
        pad = lambda t, fill: torch.nn.functional.pad(t, (0, width - len(t)), value=fill)  # noqa: E731
        return {
            "input_ids": torch.stack([pad(e.inputs["input_ids"], 0) for e in some]),
            "labels": torch.stack([pad(e.labels, -100) for e in some]),
            "attention_mask": torch.stack([
                pad(torch.ones(e.length, dtype=torch.long), 0) for e in some
            ]),
        }

    return DataLoader(data, batch_size=size, shuffle=g is not None, generator=g, collate_fn=collate)  # type: ignore[arg-type]


# Would catch: examples without ids named by order of arrival, so that a shuffling loader draws
# other labels in every run.
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_shuffling_loader_changes_nothing(options):
    model = models.case("gpt2").model
    one = fs.estimate(model, loader("gpt2"), progress=False, **options)
    for seed, size in ((0, 2), (1, 3)):
        data = loader("gpt2", shuffled=seed, size=size)
        same(fs.estimate(model, data, progress=False, **options), one)


# Would catch: names that begin at "0" in every call, so that estimates from raw batches cannot be
# added, or that never collide, so that the same example counts twice without a word.
def test_estimates_from_raw_batches_add_up():
    case = models.case("mlp")
    x = torch.stack([row.inputs["0"] for row in case.rows])
    y = torch.stack([row.labels for row in case.rows])

    def of(some):
        return fs.estimate(case.model, (x[some], y[some]), fisher_type="mc", progress=False)

    first, second = of(slice(0, 2)), of(slice(2, None))
    same(first + second, of(slice(None)))
    with pytest.raises(fs.IdentityError, match=r"1 example ids .* twice.*column \"id\""):
        first + of(slice(1, 3))


def test_progress_is_shown_only_when_wanted(capfd):
    case = models.case("mlp")
    fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert capfd.readouterr() == ("", "")
    fs.estimate(case.model, rows.examples(case.rows), progress=True)
    out, err = capfd.readouterr()
    assert not out and "Fisher" in err and "token" in err


def test_a_module_without_parameters():
    with pytest.raises(fs.ParameterError, match="no parameters"):
        fs.estimate(nn.ReLU(), torch.zeros(2, 3), likelihood="classification", progress=False)


# Would catch: a likelihood whose rows are not the model's outputs, found out by a shape error
# from deep inside.
def test_outputs_that_do_not_fit_the_labels():
    data = rows.examples(rows.points(4, (5,), targets=3))
    with pytest.raises(fs.LikelihoodError, match="regression"):
        fs.estimate(nets.MLP(2), data, progress=False)
    with pytest.raises(fs.LikelihoodError, match="say likelihood="):
        fs.estimate(nets.MLP(2), torch.zeros(3, 5), progress=False)
