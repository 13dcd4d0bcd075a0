"""The whole study on small models: tables, options, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fisherscope as fs
from fisherscope.studies.conflict import conflict
from oracles import models, rows


@pytest.fixture(scope="module")
def small():
    data = rows.examples(rows.points(24, (5,), classes=4))
    return models.case("mlp").model, {"a": data[:9], "b": data[9:18], "c": data[18:]}


@pytest.fixture(scope="module")
def found(small):
    return conflict(*small, resamples=50, permutations=20)


def test_every_pair_layer_and_metric_has_a_row(small, found):
    # Catches pairs of a task with itself, a scope lost, and ordered pairs that lack one order.
    model, tasks = small
    scopes = set(found.cosines["scope"])
    assert "all" in scopes and len(scopes) > 1
    assert len(found.cosines) == 3 * len(scopes) * 2
    assert len(found.norms) == 3 * len(scopes) * 2
    assert set(zip(found.tests["on"], found.tests["by"], strict=True)) == {
        (a, b) for a in tasks for b in tasks if a != b
    }
    assert found.n_examples == {"a": 9, "b": 9, "c": 6} and found.n_tokens == found.n_examples
    assert len(found.examples) == 2 * 2 * 24
    json.dumps(found.to_dict())
    assert found.to_frame().equals(found.cosines)


def test_it_agrees_with_gradients_by_autograd(small, found):
    # Catches sums for means and a product of the wrong tasks: the whole way through once more.
    model, tasks = small
    means = {}
    for task, data in tasks.items():
        x = torch.stack([e.inputs["0"] for e in data])
        y = torch.stack([e.labels for e in data])
        loss = torch.nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        means[task] = torch.cat([g.flatten() for g in grads]).double()
    row = found.cosines.query("scope == 'all' and metric == 'plain' and task_a == 'a'").iloc[1]
    assert row["task_b"] == "c"
    assert row["inner"] == pytest.approx(float(means["a"] @ means["c"]), rel=1e-4)
    biased = found.norms.query("scope == 'all' and metric == 'plain' and task == 'b'").iloc[0]
    assert biased["biased"] == pytest.approx(float(means["b"] @ means["b"]), rel=1e-4)


def test_the_same_call_gives_the_same_numbers_in_any_batches(small, found):
    again = conflict(*small, resamples=50, permutations=20, batch_size=2)
    for name in ("cosines", "examples", "pairs"):
        one, two = getattr(found, name), getattr(again, name)
        numbers = one.select_dtypes("number").columns
        np.testing.assert_allclose(
            one[numbers].to_numpy(float), two[numbers].to_numpy(float), rtol=1e-3, atol=1e-4
        )


def test_sketches_where_memory_is_short(small, found):
    # Catches a plan that is not followed, and sketches that change the answer beyond their noise.
    model, tasks = small
    size = sum(p.numel() for p in model.parameters())
    case = models.case("llama-tied")
    data = rows.examples(case.rows)
    short = conflict(case.model, {"a": data[:2], "b": data[2:]}, memory_limit=65_000, resamples=5)
    assert not short.plan.exact and "sketches" in short.plan.describe()
    assert (short.cosines["sketch_sd"] > 0).any()
    assert found.plan.exact and found.plan.bytes == 4 * 24 * size


def test_fishers_are_those_of_the_tasks(small):
    model, tasks = small
    fishers = {
        task: fs.estimate(model, data, fisher_type="mc", progress=False)
        for task, data in tasks.items()
    }
    given = conflict(model, tasks, fishers=fishers, resamples=5, permutations=5)
    own = conflict(model, tasks, resamples=5, permutations=5)
    np.testing.assert_allclose(given.cosines["cosine"], own.cosines["cosine"], rtol=1e-4)
    assert "3 diagonal" in own.metric
    whole = fs.estimate(
        model, [e for d in tasks.values() for e in d], structure="kfac", progress=False
    )
    other = conflict(model, tasks, fishers=whole, resamples=5, permutations=5)
    assert "kfac" in other.metric
    natural = other.cosines["metric"] == "natural"
    assert not np.allclose(other.cosines["cosine"][natural], own.cosines["cosine"][natural])
    np.testing.assert_allclose(
        other.cosines["cosine"][~natural], own.cosines["cosine"][~natural], rtol=1e-4
    )


def test_errors_name_what_is_wrong(small):
    model, tasks = small
    one = {"a": tasks["a"]}
    with pytest.raises(fs.TaskError, match="two tasks.*'a'"):
        conflict(model, one)
    fisher = fs.estimate(model, tasks["a"], progress=False)
    with pytest.raises(fs.TaskError, match="'b'"):
        conflict(model, {"a": tasks["a"], "b": tasks["b"]}, fishers={"a": fisher})
    with pytest.raises(fs.ParameterError, match="parameters="):
        conflict(model, tasks, fishers=fisher, parameters="*bias")
    with pytest.raises(fs.ParameterError, match="damping"):
        conflict(model, tasks, damping=-1.0)
    for name, value in (
        ("resamples", 0),
        ("permutations", 1.5),
        ("most_pairs", 0),
        ("level", 1.0),
    ):
        with pytest.raises(fs.ParameterError, match=name):
            conflict(model, tasks, **{name: value})
    with pytest.raises(fs.ParameterError, match="memory_limit"):
        conflict(model, tasks, memory_limit=100)


def test_a_gradient_that_is_not_finite_is_named_and_the_model_is_untouched(small):
    model, tasks = small
    bad = fs.Example("bad", {"0": torch.full((5,), float("inf"))}, torch.tensor(0))
    before = [p.detach().clone() for p in model.parameters()]
    fishers = {task: fs.estimate(model, tasks["a"], progress=False) for task in "ab"}
    with pytest.raises(fs.NonFiniteError, match="'bad'"):
        conflict(model, {"a": tasks["a"], "b": [*tasks["b"], bad]}, fishers=fishers)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_too_few_examples_is_an_outcome(small):
    model, tasks = small
    few = conflict(model, {"a": tasks["a"], "b": tasks["b"][:3]}, resamples=5, permutations=5)
    assert set(few.cosines["outcome"]) == {"too_few_examples"}
    assert set(few.tests["outcome"]) == {"too_few_examples"} and few.examples.empty
