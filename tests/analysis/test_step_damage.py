"""What a step on one task does to another, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs
from oracles import brute, models, rows

NAMES = ["mlp", "gpt2", "llama-tied"]
HALF = 3


def halves(name):
    case = models.case(name)
    return rows.examples(case.rows[:HALF]), rows.examples(case.rows[HALF:])


def scores(name, part):
    """Per-example scores in float64, one flat vector each, and numbers of tokens."""
    case, twin = models.case(name), brute.twin(name)
    found, tokens = [], []
    for row in case.rows[part]:
        (score,) = brute.scores(twin, row, case.likelihood, "example")
        found.append(torch.cat([g.reshape(-1) for g in score.values()]).numpy())
        tokens.append(len(brute.supervised(row, case.likelihood)[0]))
    return np.array(found), np.array(tokens)


def formula(f, g, kind):
    weight = np.sqrt(f) if kind == "sqrt" else f
    return (weight * (g**2 if kind == "quadratic" else abs(g))).sum() / weight.sum()


# Catches: g_B of a batch that is clipped, summed or averaged per example; F_A of B's data; parts
# of a tied tensor squared one by one; per-example shares that don't add up to the index.
@pytest.mark.parametrize("kind", ["quadratic", "sqrt", "l1"])
@pytest.mark.parametrize("name", NAMES)
def test_against_brute_force(name, kind):
    (s_a, t_a), (s_b, t_b) = scores(name, slice(HALF)), scores(name, slice(HALF, None))
    g_a, g_b = s_a.sum(0) / t_a.sum(), s_b.sum(0) / t_b.sum()
    a, b = halves(name)
    rate = 0.01
    found = fs.step_damage(models.case(name).model, a, b, kind=kind, learning_rate=rate)
    assert found.index.index == pytest.approx(formula((s_a**2).mean(0), g_b, kind), rel=1e-4)
    assert found.damage.table["first"][0] == pytest.approx(-rate * g_a @ g_b, rel=1e-3, abs=1e-7)
    assert found.step_norm == pytest.approx(rate * np.linalg.norm(g_b), rel=1e-4)
    assert found.learning_rate == rate
    examples = found.examples
    per_example = examples["index_total"].mean() / examples["index_weight"].mean()
    assert per_example == pytest.approx(found.index.index, rel=1e-4)
    if kind == "quadratic":
        order = [int(example.removeprefix("row-")) for example in examples["example"]]
        np.testing.assert_allclose(examples["index_total"], (s_a**2 @ g_b**2)[order], rtol=1e-3)
        np.testing.assert_allclose(examples["index_weight"], (s_a**2).sum(1)[order], rtol=1e-3)


# Catches: a linearisation of the square roots that is off by its factor of one half.
def test_the_index_of_reweighted_examples():
    (s_a, _), (s_b, t_b) = scores("mlp", slice(HALF)), scores("mlp", slice(HALF, None))
    g = s_b.sum(0) / t_b.sum()
    counts = np.array([1.02, 1.0, 0.98])
    for kind in ("quadratic", "sqrt", "l1"):
        found = fs.step_damage(models.case("mlp").model, *halves("mlp"), kind=kind)
        order = [int(example.removeprefix("row-")) for example in found.examples["example"]]
        total, weight = (
            counts[order] @ found.examples[f"index_{p}"] / 3 for p in ("total", "weight")
        )
        before = formula((s_a**2).mean(0), g, kind)
        after = formula(counts @ s_a**2 / 3, g, kind)
        moved = total / weight - before
        assert moved == pytest.approx(after - before, rel=0.05)
        assert found.index_low <= found.index.index <= found.index_high
        for part in ("total", "weight"):
            mean = found.examples[f"index_{part}"].mean()
            assert mean == pytest.approx(getattr(found.index, part), rel=1e-4)


# Catches: rows of the table that don't add up, a measurement that is not fs.damage's, a step that
# is left on the model.
@pytest.mark.parametrize("name", ["mlp", "llama-tied"])
def test_the_table_and_the_measurement(name):
    model, (a, b) = models.case(name).model, halves(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = fs.step_damage(model, a, b, measure=True)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    frame = found.to_frame()
    top = frame.iloc[0]
    for level in ("layer", "tensor"):
        part = frame[frame["level"] == level]
        for column in ("first", "second", "predicted"):
            assert part[column].sum() == pytest.approx(top[column], rel=1e-6)
    expected = fs.damage(model, a, fs.descent_step(model, b)).table.iloc[0]
    for column in ("first", "second", "predicted", "predicted_low", "predicted_high", "measured"):
        assert top[column] == pytest.approx(expected[column], rel=1e-4)
    assert frame["measured"].notna().sum() == 1
    assert np.isnan(fs.step_damage(model, a, b).to_frame()["measured"]).all()


# Catches: an interval that is too narrow or too wide, by a bootstrap over something else.
def test_the_interval_of_the_index_is_as_wide_as_the_delta_method_says():
    case = models.case("mlp")
    torch.manual_seed(0)
    data = (torch.randn(60, 5), torch.randint(4, (60,)))
    found = fs.step_damage(case.model, data, rows.examples(case.rows))
    x, y = found.examples["index_total"].to_numpy(), found.examples["index_weight"].to_numpy()
    residuals = x - found.index.index * y
    error = np.sqrt(60 / 59 * (residuals**2).sum()) / y.sum()
    width = found.index_high - found.index_low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.15)


# Catches (tensorscope fact 7): a Fisher that was asked for and is not the one that is used.
def test_a_given_fisher_is_used():
    model, (a, b) = models.case("gpt2").model, halves("gpt2")
    other = fs.estimate(model, b, progress=False)
    found = fs.step_damage(model, a, b, fisher=other)
    expected = fs.damage_index(other, fs.mean_gradient(model, b)).index
    assert found.index.index == pytest.approx(expected, rel=1e-6)
    assert found.index.index != pytest.approx(fs.step_damage(model, a, b).index.index, rel=0.01)
    assert np.isnan([found.index_low, found.index_high]).all()


# Catches: settings that reach only one of the three answers.
def test_settings_reach_the_index():
    model, (a, b) = models.case("gpt2").model, halves("gpt2")
    options = {"parameters": "*mlp*", "fisher_type": "mc", "unit": "token", "draws": 2, "seed": 3}
    found = fs.step_damage(model, a, b, **options)
    fisher = fs.estimate(model, a, progress=False, **options)
    gradient = fs.mean_gradient(model, b, parameters="*mlp*")
    assert found.index.index == pytest.approx(fs.damage_index(fisher, gradient).index, rel=1e-4)
    shares = found.examples["index_total"].sum() / found.examples["index_weight"].sum()
    assert shares == pytest.approx(found.index.index, rel=1e-4)
    assert set(found.damage.tensors["tensor"]) == set(gradient)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "asymmetric"}, "kind='asymmetric'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"unit": "position"}, "unit='position'"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(fs.ParameterError, match=said):
        fs.step_damage(models.case("mlp").model, *halves("mlp"), **options)


def test_a_fisher_of_other_parameters_is_refused():
    case = models.case("mlp")
    part = fs.estimate(case.model, halves("mlp")[0], parameters="*bias", progress=False)
    with pytest.raises(fs.ParameterError, match="not covered"):
        fs.step_damage(case.model, *halves("mlp"), fisher=part)
