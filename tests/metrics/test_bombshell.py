"""The toolkit's methods are the functions, with the Fisher of a named task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs
from oracles import brute, models, rows

NAMES = ["mlp", "gpt2", "llama-tied"]


def filled(name, config=None):
    """Two tasks with Fishers and moving averages."""
    case, metrics = models.case(name), fs.BombshellMetrics(config=config)
    data = rows.examples(case.rows)
    metrics.update_fisher_ema(case.model, data[:3], "a|b")
    metrics.update_fisher_ema(case.model, data[3:], "c_d")
    return case.model, data, metrics


# Catches (tensorscope 1.1.4): importances that are sums over groups of unlike size, shaped like
# no parameter; an unknown task that gives {}.
@pytest.mark.parametrize("name", NAMES)
def test_importance(name):
    model, _, metrics = filled(name)
    found = metrics.compute_fisher_importance(model, "a|b")
    expected = metrics.store["a|b"].diagonal()
    total = sum(float(t.double().sum()) for t in expected.values())
    for n, p in model.named_parameters():
        assert found.values[n].shape == p.shape
        torch.testing.assert_close(found.values[n], expected[n] / total)
    per = metrics.compute_fisher_importance(model, "a|b", per="layer").to_frame()
    assert per["importance"].sum() == pytest.approx(1)
    recent = metrics.compute_fisher_importance(task="a|b", per="tensor", source="ema").to_frame()
    np.testing.assert_allclose(
        recent["importance"],
        metrics.compute_fisher_importance(task="a|b", per="tensor").to_frame()["importance"],
        rtol=1e-5,
    )
    assert recent["mean_se"].isna().all()
    assert not recent["reliable"].any()


# Catches (tensorscope 1.1.5): a "top" that holds every value, a k per tensor (5 gave 93), and
# (1.1.12) a helper that does not exist.
@pytest.mark.parametrize("name", NAMES)
def test_top_coordinates(name):
    model, data, metrics = filled(name)
    found = metrics.get_top_fisher_directions("a|b", k=5)
    flat = torch.cat([t.reshape(-1) for t in metrics.store["a|b"].diagonal().values()])
    np.testing.assert_allclose(found.to_frame()["value"], flat.topk(5).values, rtol=1e-6)
    share = metrics.get_top_fisher_directions("a|b", percentile=95)
    assert share.k == round(0.05 * len(flat))
    direct = metrics.get_top_fisher_directions(k=5, source="direct", model=model, batch=data[:3])
    assert direct.to_dict() == found.to_dict()
    assert "default" not in metrics.store
    same = metrics._get_top_coordinates_from_fisher(metrics.store["a|b"], k=5)
    assert same.to_dict() == found.to_dict()


def test_eigenvectors_of_factored_structures():
    # Catches: coordinates of a matrix whose directions are not the axes.
    case = models.case("mlp")
    metrics = fs.BombshellMetrics()
    metrics.store["m"] = fs.estimate(
        case.model, rows.examples(case.rows), structure="kfac", progress=False
    )
    found = metrics.get_top_fisher_directions("m", k=3)
    largest = torch.linalg.eigvalsh(metrics.store["m"].dense()).flip(0)[:3]
    np.testing.assert_allclose(found.to_frame()["eigenvalue"], largest, rtol=1e-4)
    with pytest.raises(fs.ParameterError, match="percentile="):
        metrics.get_top_fisher_directions("m", percentile=99)


# Catches (tensorscope 1.1.6): tasks that never share a key, so that the similarity is 0 of 0; an
# overlap that is 0.144 of a task with itself; an unknown metric that gives 0.
@pytest.mark.parametrize("name", NAMES)
def test_comparison(name):
    _, _, metrics = filled(name)
    itself = metrics.compare_task_fisher("a|b", "a|b").to_frame().set_index("metric")["value"]
    np.testing.assert_allclose(itself, 1, rtol=1e-6)
    one, two = (
        torch.cat([t.double().reshape(-1) for t in metrics.store[task].diagonal().values()])
        for task in ("a|b", "c_d")
    )
    found = metrics.compare_task_fisher("a|b", "c_d", ["cosine"]).to_frame()
    assert list(found["metric"]) == ["cosine"]
    assert found["value"][0] == pytest.approx(float(one @ two / one.norm() / two.norm()), rel=1e-5)
    with pytest.raises(fs.ParameterError, match="'angle'"):
        metrics.compare_task_fisher("a|b", "c_d", ["angle"])


# Catches (tensorscope 1.1.7): identical masks with overlap 0.117; (1.1.8) masks shaped like no
# parameter, 11.7% kept for 10%, a structured option that does nothing.
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_masks_and_overlap(name):
    model, _, metrics = filled(name)
    masks = metrics.get_fisher_pruning_masks("a|b", 0.9, model=model)
    kept, n = (sum(int(f(m)) for m in masks.values()) for f in (torch.sum, torch.numel))
    assert kept == n - round(0.9 * n)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert all(mask.shape == shapes[name] for name, mask in masks.items())
    assert metrics.compute_fisher_overlap(masks, masks).jaccard == 1
    heads = metrics.get_fisher_pruning_masks("a|b", 0.5, structured="head", model=model)
    assert heads.keys() != masks.keys()
    four = metrics.get_fisher_pruning_masks("a|b", 0.5, pattern="2:4", model=model)
    assert sum(int(m.sum()) for m in four.values()) * 2 == sum(m.numel() for m in four.values())
    with pytest.raises(fs.ParameterError, match="exclude each other"):
        metrics.get_fisher_pruning_masks("a|b", structured="head", pattern="2:4", model=model)


# Catches (tensorscope 1.1.13): gradients that come back unchanged because no key matches, and a
# power that multiplies by F.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["mean", "ema"])
def test_scaling(name, source):
    model, data, metrics = filled(name)
    gradients = fs.mean_gradient(model, data)
    found = metrics.scale_by_fisher(gradients, "a|b", 1e-2, 0.5, relative=False, source=source)
    for n, f in metrics.store["a|b"].diagonal().items():
        torch.testing.assert_close(found[n], gradients[n] / (f + 1e-2).sqrt(), rtol=1e-4, atol=1e-6)
    for wrong in ({}, {"fc.weight": torch.zeros(2)}):
        with pytest.raises(fs.ParameterError):
            metrics.scale_by_fisher(wrong, "a|b")
    with pytest.raises(fs.ParameterError, match="damping"):
        metrics.scale_by_fisher(gradients, "a|b", -1.0)


# Catches (tensorscope 1.1.14): one scalar per tensor, names found within other names, an epsilon
# that outweighs small Fishers.
@pytest.mark.parametrize("name", NAMES)
def test_merging_is_parameter_by_parameter(name):
    metrics, members = fs.BombshellMetrics(), []
    for n in range(2):
        model = models.fresh(name).model
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * n)
        metrics.store[str(n)] = fs.estimate(
            model, rows.examples(models.case(name).rows), progress=False
        )
        members.append(model)
    found = metrics.fisher_weighted_merge(members, ["0", "1"], normalize=False).model
    f = [metrics.store[str(n)].diagonal() for n in range(2)]
    theta = [dict(m.named_parameters()) for m in members]
    for n, p in found.named_parameters():
        total = f[0][n].double() + f[1][n].double()
        mean = (f[0][n] * theta[0][n] + f[1][n] * theta[1][n]).double() / total
        expected = torch.where(total > 0, mean, (theta[0][n] + theta[1][n]).double() / 2)
        torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(fs.IdentityError, match="another|fingerprint"):
        metrics.fisher_weighted_merge(members, ["1", "0"])


# Catches (tensorscope 1.1.15): infinite uncertainty by default, and confidence in a wrecked model.
@pytest.mark.parametrize("kind", ["laplace", "monte_carlo", "cramer_rao"])
def test_uncertainty(kind):
    case = models.case("mlp")
    data = rows.examples(case.rows)
    metrics = fs.BombshellMetrics()
    metrics.store["m"] = fs.estimate(case.model, data, fisher_type="type-2", progress=False)
    found = metrics.estimate_fisher_uncertainty(case.model, data, "m", kind, prior_precision=1.0)
    expected = fs.uncertainty(case.model, metrics.store["m"], data, kind=kind, prior_precision=1.0)
    assert found.to_dict() == expected.to_dict()
    # A batch that was shown three times is no more data than one that was shown once.
    for _ in range(3):
        metrics.update_fisher_ema(case.model, data, "shown")
    metrics.store["once"] = fs.estimate(case.model, data, progress=False)
    often, once = (
        metrics.estimate_fisher_uncertainty(case.model, data, t, kind, prior_precision=1.0)
        for t in ("shown", "once")
    )
    one, two = (found.to_frame().select_dtypes(float) for found in (often, once))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)


ASK = {
    "compute_fisher_importance": lambda m: m.compute_fisher_importance(task="x"),
    "get_top_fisher_directions": lambda m: m.get_top_fisher_directions("x"),
    "compare_task_fisher": lambda m: m.compare_task_fisher("a", "x"),
    "get_fisher_pruning_masks": lambda m: m.get_fisher_pruning_masks("x"),
    "scale_by_fisher": lambda m: m.scale_by_fisher({}, "x"),
    "fisher_weighted_merge": lambda m: m.fisher_weighted_merge([None], ["x"]),
    "estimate_fisher_uncertainty": lambda m: m.estimate_fisher_uncertainty(None, None, "x"),
}


@pytest.mark.parametrize("method", ASK)
def test_unknown_tasks_name_the_known_ones(method):
    # Catches: {}, 0.0, inf, or the gradients as they were.
    metrics = fs.BombshellMetrics()
    case = models.case("mlp")
    metrics.update_fisher_ema(case.model, rows.examples(case.rows), "a")
    with pytest.raises(fs.TaskError, match="'x'.*known: 'a'"):
        ASK[method](metrics)


def test_sources_that_make_no_sense():
    case = models.case("mlp")
    metrics = fs.BombshellMetrics()
    metrics.update_fisher_ema(case.model, rows.examples(case.rows))
    with pytest.raises(fs.ParameterError, match="source='welford'"):
        metrics.compute_fisher_importance(source="welford")
    with pytest.raises(fs.ParameterError, match=r"model= and batch="):
        metrics.get_top_fisher_directions(source="direct")
    for percentile in (-1, 100):
        with pytest.raises(fs.ParameterError, match="percentile="):
            metrics.get_top_fisher_directions(percentile=percentile)


# Catches: two estimates behind one name. Both classes, the function, and brute force are one.
@pytest.mark.parametrize("name", NAMES)
def test_both_classes_are_one_estimate_and_one_store(name):
    case = models.case(name)
    data = rows.examples(case.rows)
    store = fs.FisherStore()
    bombshell, modularity = fs.BombshellMetrics(store), fs.ModularityMetrics(store)
    assert bombshell.config is modularity.config is fs.DEFAULTS
    one, two = (m._estimate_fisher_diagonal(case.model, data) for m in (bombshell, modularity))
    function = fs.estimate(case.model, data, progress=False).diagonal()
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n], f) for n, f in function.items())
    sums, _ = brute.reference(name, "example")
    expected = {n: s / len(case.rows) for n, s in sums.items()}
    assert brute.worst(one, expected, case.vanishes)[0] < 1e-5
    bombshell.update_fisher_ema(case.model, data, "t")
    ours, theirs = (m._get_ema_fisher_for_task("t") for m in (bombshell, modularity))
    for n in ours:
        assert ours[n].data_ptr() == theirs[n].data_ptr()
        sums = [m.store["t"].sums[n] for m in (bombshell, modularity)]
        assert sums[0].untyped_storage().data_ptr() == sums[1].untyped_storage().data_ptr()
    apart = [kind() for kind in (fs.BombshellMetrics, fs.ModularityMetrics)]
    for metrics in apart:
        metrics.update_fisher_ema(case.model, data, "t")
    one, two = (m.get_bias_corrected_fisher_ema("t") for m in apart)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_the_cost_of_removal_needs_the_weights_of_the_fisher():
    # Catches: a Fisher of one model times the squared weights of another of the same shapes.
    case, other = models.case("mlp"), models.fresh("mlp").model
    with torch.no_grad():
        other.first.weight.add_(0.5)
    metrics, data = fs.BombshellMetrics(), rows.examples(case.rows)
    metrics.update_fisher_ema(case.model, data)
    for ask in (
        lambda model: metrics.get_fisher_pruning_masks(sparsity=0.5, model=model),
        lambda model: metrics.compute_fisher_importance(model, method="obd"),
    ):
        ask(case.model)
        with pytest.raises(fs.IdentityError, match="estimated at other weights"):
            ask(other)
    # Along a run the Fisher is that of no single model; its end is as good as any.
    metrics.update_fisher_ema(other, data)
    assert metrics.get_fisher_pruning_masks(sparsity=0.5, model=other)
