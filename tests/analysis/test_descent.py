"""The step that a task would take, against its definition."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope.analysis.damage import damage
from fisherscope.analysis.descent import descent_step
from oracles import brute, models, rows


# Would catch: a step up, a mean over examples for one over tokens, a curvature of other labels.
@pytest.mark.parametrize("name", ["llama-tied", "bert", "layerscale", "mlp-regression"])
def test_it_is_the_cauchy_step(name):
    case, twin = models.case(name), brute.twin(name)
    total = sum(len(brute.supervised(row, case.likelihood)[0]) for row in case.rows)
    gradient = brute.zeros(twin)
    for row in case.rows:
        (score,) = brute.scores(twin, row, case.likelihood, "example")
        for n, g in score.items():
            gradient[n] += g / total
    curvature = 0.0
    for row in case.rows:
        labels = brute.draw_labels(twin, row, case.likelihood, seed=3, draw=0)
        (score,) = brute.scores(twin, row, case.likelihood, "example", labels)
        curvature += float(sum((g * gradient[n]).sum() for n, g in score.items())) ** 2 / total
    squared = sum(float(g.square().sum()) for g in gradient.values())
    found = descent_step(case.model, rows.examples(case.rows), fraction=0.3, seed=3)
    assert list(found) == list(gradient)
    for n, g in gradient.items():
        assert found[n].dtype == torch.float32
        expected = -0.3 * squared / curvature * g
        largest = max(float(t.abs().max()) for t in gradient.values()) * squared / curvature
        assert torch.allclose(found[n].double(), expected, rtol=1e-3, atol=1e-5 * largest), n


# Would catch: a fraction that is applied twice. At the whole step the second order takes back
# half of what the first gains, and shorter steps really reduce the loss.
def test_the_predicted_minimum_and_a_real_decrease():
    case = models.case("llama-untied")
    data = rows.examples(case.rows)
    whole = descent_step(case.model, data, fraction=1.0, seed=2)
    row = damage(case.model, data, whole, seed=2, measure=False).table.iloc[0]
    assert row["second"] == pytest.approx(-row["first"] / 2, rel=1e-3)
    tenth = descent_step(case.model, data, fraction=0.02, seed=2)
    assert damage(case.model, data, tenth, seed=2).table["measured"][0] < 0


def test_only_the_parameters_asked_for_move():
    case = models.case("gpt2")
    found = descent_step(case.model, rows.examples(case.rows), parameters="*mlp*")
    assert list(found) == [n for n, _ in case.model.named_parameters() if "mlp" in n]


@pytest.mark.parametrize("fraction", [0, -1.0, float("nan")])
def test_a_fraction_that_makes_no_sense(fraction):
    case = models.case("mlp")
    with pytest.raises(fs.ParameterError, match="fraction"):
        descent_step(case.model, rows.examples(case.rows), fraction=fraction)


# Would catch: a division by zero.
def test_no_direction_of_descent():
    case = models.case("unused")
    with pytest.raises(fs.DataError, match="vanishes"):
        descent_step(case.model, rows.examples(case.rows), parameters="never")
