"""Predicted loss changes against autograd and brute force, and against the real step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fisherscope as fs
from fisherscope.analysis.damage import damage
from fisherscope.engine.displace import displaced
from oracles import brute, models, nets, rows

NAMES = ("gpt2", "llama-tied", "bert-mlm", "resnet", "layerscale", "mlp-regression")
Delta = dict[str, Tensor]


def step(name: str, size: float, seed: int = 0) -> Delta:
    g = torch.Generator().manual_seed(seed)
    model = models.case(name).model
    return {n: size * torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}


def tokens(name: str) -> np.ndarray:
    case = models.case(name)
    return np.array([len(brute.supervised(r, case.likelihood)[0]) for r in case.rows])


@cache
def along(name: str, seed: int = 0, draws: int = 0, label_seed: int = 0) -> np.ndarray:
    """Inner products of scores and the unit step, tensor by tensor [draws, rows, tensors]."""
    case, twin = models.case(name), brute.twin(name)
    move = step(name, 1.0, seed)
    found = []
    for draw in range(max(1, draws)):
        found.append([])
        for row in case.rows:
            labels = (
                brute.draw_labels(twin, row, case.likelihood, label_seed, draw) if draws else None
            )
            (score,) = brute.scores(twin, row, case.likelihood, "example", labels)
            found[-1].append([float((g * move[n].double()).sum()) for n, g in score.items()])
    return np.array(found)


def losses(model: nn.Module, name: str) -> np.ndarray:
    case = models.case(name)
    with torch.no_grad():
        return np.array([
            float(brute.token_losses(model, r, case.likelihood).sum()) for r in case.rows
        ])


def run(name: str, delta, **options):
    case = models.case(name)
    return damage(case.model, rows.examples(case.rows), delta, **options)


# Would catch: a mean over examples for a mean over tokens, the half forgotten, the square of
# the mean for the mean of squares, cross terms between tensors lost, a sign.
@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_order_against_autograd(name):
    size = 1e-2
    found = run(name, step(name, size), fisher_type="empirical", measure=False)
    (inner,) = size * along(name)
    total = tokens(name).sum()
    row = found.table.iloc[0]
    assert row["first"] == pytest.approx(inner.sum() / total, rel=1e-4)
    assert row["second"] == pytest.approx(0.5 * (inner.sum(1) ** 2).sum() / total, rel=1e-4)
    assert row["predicted"] == pytest.approx(row["first"] + row["second"])
    assert (row["n_examples"], row["n_tokens"]) == (len(inner), total)
    by_tensor = found.tensors.set_index("tensor")
    names = [n for n, _ in models.case(name).model.named_parameters()]
    assert list(by_tensor.index) == names
    scale = abs(inner).max()
    np.testing.assert_allclose(
        by_tensor["first"], inner.sum(0) / total, rtol=1e-4, atol=1e-6 * scale
    )
    cross = 0.5 * (inner * inner.sum(1, keepdims=True)).sum(0) / total
    np.testing.assert_allclose(by_tensor["second"], cross, rtol=1e-4, atol=1e-6 * scale**2)
    by_example = found.examples.set_index("example").loc[[r.id for r in models.case(name).rows]]
    np.testing.assert_allclose(by_example["first"], inner.sum(1), rtol=1e-4, atol=1e-6 * scale)
    second = 0.5 * inner.sum(1) ** 2
    np.testing.assert_allclose(by_example["second"], second, rtol=2e-4, atol=1e-6 * second.max())
    assert (by_example["tokens"] == tokens(name)).all()
    assert by_example["measured"].isna().all()


# Would catch: the data's labels in the second order (the empirical Fisher) or drawn ones in
# the first; draws that are summed.
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_second_order_with_drawn_labels(name, draws):
    found = run(name, step(name, 1.0), draws=draws, seed=4, measure=False)
    inner = along(name, draws=draws, label_seed=4)
    total = tokens(name).sum()
    assert found.fisher_type == "mc"
    expected = 0.5 * (inner.sum(2) ** 2).mean(0)
    assert found.table.second[0] == pytest.approx(expected.sum() / total, rel=1e-4)
    assert found.table["first"][0] == pytest.approx(along(name).sum() / total, rel=1e-4)
    by_example = found.examples.set_index("example").loc[[r.id for r in models.case(name).rows]]
    np.testing.assert_allclose(
        by_example["second"], expected, rtol=2e-4, atol=1e-6 * expected.max()
    )


# Would catch: shares that do not add up, whatever they are shares of.
def test_shares_of_tensors_and_examples_add_up():
    found = run("gpt2", step("gpt2", 0.01), draws=2)
    row = found.table.iloc[0]
    for order in ("first", "second"):
        assert found.tensors[order].sum() == pytest.approx(row[order], rel=1e-6)
        assert found.examples[order].sum() / row["n_tokens"] == pytest.approx(row[order])
    assert found.examples["measured"].sum() / row["n_tokens"] == pytest.approx(row["measured"])


# Would catch: a step that is not taken, taken twice, or taken without the other name of a tied
# tensor; losses in training mode; means over examples.
@pytest.mark.parametrize("name", NAMES)
def test_the_measurement_is_the_loss_of_the_moved_model(name):
    move = step(name, 0.03)
    found = run(name, move, batch_size=2)
    twin = brute.twin(name)
    other = brute.double(twin)
    with torch.no_grad():
        for n, p in other.named_parameters():
            p.add_(move[n])
    change = losses(other, name) - losses(twin, name)
    by_example = found.examples.set_index("example").loc[[r.id for r in models.case(name).rows]]
    np.testing.assert_allclose(
        by_example["measured"], change, rtol=1e-4, atol=3e-6 * losses(twin, name).max()
    )
    row = found.table.iloc[0]
    assert row["measured"] == pytest.approx(change.sum() / tokens(name).sum(), rel=1e-3)
    assert row["error"] == pytest.approx(row["measured"] - row["predicted"])


# Would catch: a prediction that is right in form but not in size. For small steps the second
# order is what the first leaves over.
def test_prediction_meets_measurement_for_small_steps():
    case = models.case("mlp-regression")
    # With one linear layer moving the squared error is quadratic in the step: both orders
    # together are exact, and the expectation over labels is what the second order is.
    g = torch.Generator().manual_seed(1)
    move = {"head.weight": 0.3 * torch.randn(case.model.head.weight.shape, generator=g)}
    seconds = [
        run("mlp-regression", move, draws=64, seed=seed, measure=seed == 0) for seed in range(8)
    ]
    row = seconds[0].table.iloc[0]
    values = np.array([d.table.second[0] for d in seconds])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.1 * values.mean()
    assert abs(row["first"] + values.mean() - row["measured"]) < 3 * error


# Would catch: displacements mixed up when several share a pass.
def test_several_displacements_at_once():
    moves = {
        "small": step("gpt2", 1e-3),
        "other": step("gpt2", 0.02, seed=1),
        "part": {"transformer.h.0.mlp.c_fc.weight": torch.full((16, 64), 0.01)},
    }
    together = run("gpt2", moves)
    assert list(together.table["displacement"]) == list(moves)
    for number, (label, move) in enumerate(moves.items()):
        alone = run("gpt2", move).table.iloc[0]
        for column in ("first", "second", "measured", "predicted_low", "error_high"):
            assert together.table[column][number] == pytest.approx(alone[column], rel=1e-5), label
    part = together.tensors[together.tensors["displacement"] == "part"].set_index("tensor")
    assert part.drop("transformer.h.0.mlp.c_fc.weight")[["first", "second"]].eq(0).all(axis=None)


def test_scales_are_multiples_of_the_displacement():
    # Catches a second order that grows like the first, a measurement at the whole step whatever
    # the scale, and stored Fishers that do not follow.
    case = models.case("gpt2")
    data = rows.examples(case.rows)
    move = {n: 1e-2 * torch.ones_like(p) for n, p in case.model.named_parameters()}
    fishers = {"diagonal": fs.estimate(case.model, data, progress=False)}
    scales = (-0.5, 0.0, 1.0, 2.0)
    found = damage(case.model, data, move, scales=scales, fishers=fishers)
    alone = [
        damage(case.model, data, {n: t * m for n, m in move.items()}, fishers=fishers).table.iloc[0]
        for t in scales
    ]
    assert list(found.table["scale"]) == list(scales)
    for row, other in zip(found.table.to_dict("records"), alone, strict=True):
        for key in ("first", "second", "predicted", "measured", "error_low", "diagonal"):
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-9)
    zero = found.table.iloc[1]
    assert zero["measured"] == zero["predicted"] == 0
    assert list(found.tensors.columns) == ["displacement", "tensor", "first", "second"]
    assert len(found.examples) == len(scales) * found.n_examples
    whole = found.table.iloc[2]
    assert found.tensors["second"].sum() == pytest.approx(whole["second"])


# Would catch: results that depend on the batches; classifiers that find the end of a row by
# its padding.
@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "llama-classifier", "llama-classifier-unpadded", "mixed"]
)
def test_batches_make_no_difference(name):
    one, whole = (run(name, step(name, 0.02), batch_size=size) for size in (1, 5))
    for column in ("first", "second", "measured"):
        a, b = (d.examples.set_index("example")[column].sort_index() for d in (one, whole))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


# Would catch: a stored Fisher read per example where the prediction is per token, a half
# forgotten, tensors that the Fisher lacks.
@pytest.mark.parametrize(
    "options",
    [{}, {"unit": "token"}, {"structure": "grouped"}, {"fisher_type": "mc", "draws": 2}],
)
def test_stored_fishers_beside_it(options):
    case = models.case("gpt2")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False, **options)
    part = fs.estimate(case.model, rows.examples(case.rows), parameters="*mlp*", progress=False)
    move = step("gpt2", 0.01)
    row = run("gpt2", move, fishers={"own": fisher, "part": part}, measure=False).table.iloc[0]
    total = fisher.n_tokens
    draws = options.get("draws", 1)
    # What a group says about each of its parameters is its mean.
    quadratic = sum(
        float((t.double() * t.numel() / move[n].numel() * move[n].double().square()).sum())
        for n, t in fisher.sums.items()
    )
    assert row["own"] == pytest.approx(row["first"] + 0.5 * quadratic / draws / total, rel=1e-4)
    expected = sum(
        float((t.double() * move[n].double().square()).sum()) for n, t in part.sums.items()
    )
    assert row["part"] == pytest.approx(row["first"] + 0.5 * expected / total, rel=1e-4)


# Would catch: an interval of something else: a mean over examples, a single example's spread.
# The bootstrap of a ratio has the width that the delta method gives, up to its own noise.
def test_intervals_are_as_wide_as_the_delta_method_says():
    case = models.case("mlp")
    data = rows.examples(rows.points(60, (5,), classes=4, seed=9))
    found = damage(case.model, data, step("mlp", 0.05))
    row = found.table.iloc[0]
    for column, values in (
        ("measured", found.examples["measured"]),
        ("predicted", found.examples["first"] + found.examples["second"]),
        ("error", found.examples["measured"] - found.examples["first"] - found.examples["second"]),
    ):
        error = values.std(ddof=1) / np.sqrt(len(values))
        width = row[f"{column}_high"] - row[f"{column}_low"]
        assert width == pytest.approx(2 * 1.96 * error, rel=0.15)
        assert row[f"{column}_low"] < row[column] < row[f"{column}_high"]


# Would catch: a displacement that is half understood: unknown names, transposed weights, one
# tensor moved in two ways, numbers that are none.
@pytest.mark.parametrize(
    ("delta", "error", "said"),
    [
        ({}, fs.ParameterError, "empty"),
        ({"lm_heed.weight": torch.zeros(40, 16)}, fs.ParameterError, "lm_heed.weight"),
        ({"model.norm.weight": torch.zeros(15)}, fs.ParameterError, r"\(15,\).*\(16,\)"),
        (
            {
                "lm_head.weight": torch.zeros(40, 16),
                "model.embed_tokens.weight": torch.ones(40, 16),
            },
            fs.ParameterError,
            "tied.*two ways",
        ),
        ({"model.norm.weight": torch.full((16,), torch.nan)}, fs.NonFiniteError, "model.norm"),
        ({"a": {"model.norm.weight": torch.full((16,), torch.inf)}}, fs.NonFiniteError, "'a'"),
    ],
)
def test_displacements_that_make_no_sense(delta, error, said):
    with pytest.raises(error, match=said):
        run("llama-tied", delta)


# Would catch: a tied tensor that only moves under its first name.
def test_a_tied_tensor_moves_under_either_name():
    move = torch.full((40, 16), 0.01)
    first, second = (
        run("llama-tied", {name: move}).table.iloc[0]
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    )
    assert first["measured"] == second["measured"] != 0
    assert first["second"] == second["second"]


def test_the_score_along_a_step_that_is_not_finite_is_named():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    broken = [
        rows.Row(r.id, {"0": r.inputs["0"] * torch.nan}, r.labels) if r.id == "row-2" else r
        for r in case.rows
    ]
    move = step("mlp", 0.1)
    assert np.isfinite(damage(case.model, data, move).table.second[0])
    with pytest.raises(fs.NonFiniteError, match="'row-2'"):
        damage(case.model, rows.examples(broken), move)


# Would catch: a layer whose use changes in later batches, of which only estimate() takes care.
def test_experts_that_few_examples_use():
    case = models.case("experts")
    move = step("experts", 0.1)
    found = damage(case.model, rows.examples(case.rows), move, fisher_type="empirical")
    (inner,) = 0.1 * along("experts")
    total = tokens("experts").sum()
    assert found.table["first"][0] == pytest.approx(inner.sum() / total, rel=1e-4)
    assert found.table.second[0] == pytest.approx(0.5 * (inner.sum(1) ** 2).sum() / total, rel=1e-4)


# Would catch: weights restored by subtraction, or not after an error.
def test_displaced_weights_come_back_bitwise():
    model = models.randomise(nets.MLP(3))
    parameters = dict(model.named_parameters())
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in parameters.items()}
    move = {n: torch.full_like(p, 1e8) for n, p in parameters.items()}
    with pytest.raises(RuntimeError), displaced(parameters, move):
        assert all((p.detach() >= 9e7).all() for p in parameters.values())
        raise RuntimeError
    for name, (pointer, values) in before.items():
        assert parameters[name].data_ptr() == pointer
        assert torch.equal(parameters[name].detach(), values)


# Would catch: columns missing from what the report reads.
def test_table():
    frame = run("mlp", step("mlp", 0.01)).to_frame()
    assert list(frame.columns) == [
        *("displacement", "scale", "first", "second"),
        *("predicted", "predicted_low", "predicted_high"),
        *("measured", "measured_low", "measured_high"),
        *("error", "error_low", "error_high"),
        *("unit", "n_examples", "n_tokens"),
    ]
    assert frame["unit"].tolist() == ["nats per token"]


def test_the_first_order_needs_the_datas_labels():
    # Catches: class 0 in place of labels that are not there.
    case = models.case("mlp")
    mute = [replace(e, labels=None) for e in rows.examples(case.rows)]
    delta = {name: torch.zeros_like(p) for name, p in case.model.named_parameters()}
    with pytest.raises(fs.DataError, match="label"):
        fs.damage(case.model, mute, delta, likelihood="classification")
