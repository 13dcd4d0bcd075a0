"""Inner products of per-example gradients against autograd, one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs
from fisherscope.defaults import FisherConfig
from fisherscope.naming import by_layer
from fisherscope.preparation import prepare
from fisherscope.studies.conflict.metric import NATURAL, PLAIN, inverse_fisher
from fisherscope.studies.conflict.rows import ALL, gather
from fisherscope.studies.conflict.sketch import plan_rows
from oracles import brute, models, rows


def gradients(name, data):
    """One row per example, all parameters one after another, in float64."""
    case, twin = models.case(name), brute.twin(name)
    found = []
    for row in data:
        (score,) = brute.scores(twin, row, case.likelihood, "example")
        found.append(score)
    return found


def tasks(name):
    case = models.case(name)
    return {"a": case.rows[:3], "b": case.rows[3:]}


def prepared(name, data):
    case = models.case(name)
    config = FisherConfig()
    return {task: prepare(case.model, rows.examples(own), config) for task, own in data.items()}


def gathered(name, limit="1GB", fishers=None, seed=0):
    case, data = models.case(name), tasks(name)
    ready = prepared(name, data)
    sizes = {n: p.numel() for n, p in case.model.named_parameters()}
    shapes = {n: tuple(p.shape) for n, p in case.model.named_parameters()}
    metric = inverse_fisher(
        case.model,
        {task: p.examples for task, p in ready.items()},
        fishers,
        1e-3,
        FisherConfig(),
        shapes,
    )
    plan = plan_rows(sizes, len(case.rows), limit)
    return gather(ready, plan, metric, seed=seed, progress=False), metric


# Would catch: a tied head or a shared layer counted once, rows in the order of the batches
# instead of the data, padding, a broadcast position, a parameter on the slow path left out.
@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "layerscale", "mixtral", "reused"])
def test_products_are_those_of_autograd_layer_by_layer(name):
    grams, metric = gathered(name)
    data = tasks(name)
    scores = gradients(name, [*data["a"], *data["b"]])
    labels = by_layer(scores[0])
    assert grams.plan.exact and set(grams.scopes) == {label for _, label in labels.values()} | {ALL}
    for key, scale in (
        (PLAIN, {n: torch.ones(()) for n in labels}),
        (NATURAL, {n: s.double() for n, s in metric.scales.items()}),
    ):
        total = 0.0
        for label in [s for s in grams.scopes if s != ALL]:
            own = torch.stack([
                torch.cat([(g[n] * scale[n]).flatten() for n in labels if labels[n][1] == label])
                for g in scores
            ])
            expected = (own @ own.T).numpy()
            total = total + expected
            found = grams.products[key][list(grams.scopes).index(label)]
            size = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * size)
        np.testing.assert_allclose(
            grams.products[key][-1], total, rtol=1e-4, atol=2e-5 * np.abs(total).max()
        )
    assert grams.ids["b"] == tuple(row.id for row in data["b"])
    np.testing.assert_array_equal(1 - grams.distinct, np.eye(len(scores)))


# Would catch: Fishers of several tasks added instead of averaged, per example for per token, or
# a damping of each tensor's own.
def test_the_metric_is_the_mean_of_diagonals_per_token_with_one_damping():
    case, data = models.case("mlp"), tasks("mlp")
    fishers = {
        task: fs.estimate(case.model, rows.examples(own), progress=False)
        for task, own in data.items()
    }
    _, metric = gathered("mlp", fishers=fishers)
    mean = {
        n: sum(f.sums[n].double() / f.n_tokens for f in fishers.values()) / 2
        for n in fishers["a"].sums
    }
    level = 1e-3 * sum(float(f.sum()) for f in mean.values()) / fishers["a"].n_parameters
    assert metric.damping == pytest.approx(level)
    for n, f in mean.items():
        torch.testing.assert_close(
            metric.scales[n].double(), (f + level) ** -0.5, rtol=1e-5, atol=0
        )


# Would catch: power 1 for 1/2 (the metric squared), a block's tensors solved one by one, or
# plain products computed after the rows were changed.
@pytest.mark.parametrize("structure", ["kfac", "dense"])
def test_other_structures_multiply_whole_gradients(structure):
    case, data = models.case("mlp"), tasks("mlp")
    everything = rows.examples(case.rows)
    fisher = fs.estimate(case.model, everything, structure=structure, progress=False)
    grams, metric = gathered("mlp", fishers=fisher)
    scores = gradients("mlp", [*data["a"], *data["b"]])
    expected = np.array([
        [
            sum(
                float((h[n] * x.double()).sum())
                for n, x in fisher.solve(
                    {n: t.float() for n, t in g.items()}, damping=metric.damping
                ).items()
            )
            for h in scores
        ]
        for g in scores
    ])
    size = np.abs(expected).max()
    np.testing.assert_allclose(grams.products[NATURAL][-1], expected, rtol=1e-2, atol=1e-3 * size)
    plain = np.array([[sum(float((g[n] * h[n]).sum()) for n in g) for h in scores] for g in scores])
    np.testing.assert_allclose(grams.products[PLAIN][-1], plain, rtol=1e-4, atol=1e-5)


# Would catch: a noise that is stated but not the sketch's (per example instead of per tensor),
# a biased sketch, or two tasks with different sketches (products of noise only).
def test_sketched_products_scatter_as_stated():
    case, ready = models.case("llama-tied"), prepared("llama-tied", tasks("llama-tied"))
    exact, metric = gathered("llama-tied")
    sizes = {n: p.numel() for n, p in case.model.named_parameters()}
    plan = plan_rows(sizes, len(case.rows), 65_000)
    assert not plan.exact
    found = [gather(ready, plan, metric, seed=1000 * s, progress=False) for s in range(12)]
    off = ~np.eye(len(exact.tokens), dtype=bool)
    for key in (PLAIN, NATURAL):
        errors = np.array([(g.products[key][-1] - exact.products[key][-1])[off] for g in found])
        stated = np.mean([g.pair_variance[key][off] for g in found], axis=0)
        ratio = float((errors**2).mean() / stated.mean())
        assert 0.3 < ratio < 1.5, ratio  # the bound leaves a negative term out
        assert abs(errors.mean()) < 0.5 * np.sqrt(stated.mean())


def test_a_structured_metric_needs_whole_gradients():
    case = models.case("llama-tied")
    fisher = fs.estimate(case.model, rows.examples(case.rows), structure="kfac", progress=False)
    with pytest.raises(fs.ParameterError, match="whole gradients"):
        gathered("llama-tied", limit=65_000, fishers=fisher)


# Would catch: a model left with hooks, gradients or in another mode.
def test_the_model_is_untouched():
    case = models.case("gpt2")
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    state = torch.get_rng_state()
    gathered("gpt2")
    assert torch.equal(torch.get_rng_state(), state)
    for n, p in case.model.named_parameters():
        assert torch.equal(p, before[n]) and p.grad is None and p.requires_grad
    assert not any(m._forward_hooks for m in case.model.modules())
