"""Recycled squared gradients against the real Fisher."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn, optim

import fisherscope as fs

N, D, K = 6, 3, 4


def data(count: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(count, D, generator=g), torch.randn(count, K, generator=g)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K))


def loss(model, x, y):
    """The negative log-likelihood of a regression of unit variance, mean over the batch."""
    return 0.5 * (model(x) - y).square().sum(1).mean()


def every_batch(model, x, y, size):
    """The squares after one step of no length on every batch that could be drawn."""
    optimizer = optim.Adagrad(model.parameters(), lr=0.0)
    for batch in itertools.product(range(len(x)), repeat=size):
        optimizer.zero_grad()
        loss(model, x[list(batch)], y[list(batch)]).backward()
        optimizer.step()
    return fs.from_optimizer(optimizer, model)


def fitted(x, y) -> nn.Linear:
    """The least-squares solution, where the mean gradient vanishes."""
    layer = nn.Linear(D, K).double()
    wide = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    solution = torch.linalg.lstsq(wide, y.double()).solution.T
    with torch.no_grad():
        layer.weight.copy_(solution[:, :-1])
        layer.bias.copy_(solution[:, -1])
    return layer


def compared(model, x, y, size=2, *, recycled=None, **options):
    fisher = fs.estimate(model, (x, y), likelihood="regression", halves=True, progress=False)
    return fs.compare_recycled(recycled or every_batch(model, x, y, size), fisher, **options)


# Would catch: a ratio upside down or of sums instead of means, tensors in another order, the
# theory of the docstring being wrong. Over all batches the expectation is exact.
@pytest.mark.parametrize("size", [1, 2, 3])
def test_at_rest_the_squares_are_one_bth_of_the_fisher(size):
    x, y = (t.double() for t in data())
    found = compared(fitted(x, y), x, y, size)
    frame = found.to_frame()
    assert list(frame["tensor"]) == ["all tensors", "weight", "bias"]
    np.testing.assert_allclose(frame["trace_ratio"], 1 / size, rtol=1e-6)
    np.testing.assert_allclose(frame["implied_batch"], size, rtol=1e-6)
    for metric in ("cosine", "pearson", "spearman", "jaccard", "bhattacharyya"):
        np.testing.assert_allclose(frame[metric], 1, rtol=1e-6)
    assert found.outcome == "ok" and found.n == D * K + K and found.n_examples == N


# Away from rest the squared mean gradient comes on top.
@pytest.mark.parametrize("size", [1, 2, 3])
def test_elsewhere_the_squared_mean_gradient_comes_on_top(size):
    x, y = data()
    model = net()
    fisher = fs.estimate(model, (x, y), likelihood="regression", progress=False)
    recycled = every_batch(model, x, y, size)
    model.zero_grad()
    loss(model, x, y).backward()
    for name, parameter in model.named_parameters():
        expected = fisher.diagonal()[name] / size + (1 - 1 / size) * parameter.grad**2
        torch.testing.assert_close(recycled.diagonal()[name], expected, rtol=2e-4, atol=1e-7)
    squared = sum(float(p.grad.square().sum()) for p in model.parameters())
    found = fs.compare_recycled(recycled, fisher).to_frame()
    ratio = 1 / size + (1 - 1 / size) * squared / fisher.trace()
    assert found["trace_ratio"][0] == pytest.approx(ratio, rel=1e-4)
    # A squared mean gradient makes batches look smaller than they are.
    assert found["implied_batch"][0] <= size * (1 + 1e-5)


# Would catch: columns under each other's names, the ceiling of the squares instead of that of the
# Fisher's halves, numbers of one tensor in the row of another.
def test_metrics_and_ceiling_per_tensor():
    x, y = data(40)
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    for start in range(0, 40, 8):
        optimizer.zero_grad()
        loss(model, x[start : start + 8], y[start : start + 8]).backward()
        optimizer.step()
    recycled = fs.from_optimizer(optimizer, model)
    fisher = fs.estimate(model, (x, y), likelihood="regression", halves=True, progress=False)
    found = fs.compare_recycled(recycled, fisher, k_fraction=0.1)
    frame = found.to_frame().set_index("tensor")
    names = list(fisher.sums)

    def vector(tensors, name):
        parts = names if name == "all tensors" else [name]
        return np.concatenate([tensors[n].double().numpy().ravel() for n in parts])

    for name in frame.index:
        row, a, b = frame.loc[name], vector(recycled.diagonal(), name), vector(fisher.sums, name)
        assert row["n_parameters"] == len(a)
        assert row["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic, rel=1e-4)
        assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic, rel=1e-4)
        assert row["cosine"] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)), rel=1e-4)
        k = max(1, round(0.1 * len(a)))
        tops = [set(np.argsort(-v, kind="stable")[:k]) for v in (a, b)]
        assert row["jaccard"] == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
        one, two = (vector(half.sums, name) for half in fisher.halves)
        ceiling = stats.spearmanr(one, two).statistic
        assert row["spearman_ceiling"] == pytest.approx(ceiling, rel=1e-4)
        assert row["trace_ratio"] == pytest.approx(a.sum() / (b.sum() / 40), rel=1e-4)
        if name != "all tensors":
            assert abs(row["spearman_floor"]) < 1e-9 and abs(row["pearson_floor"]) < 1e-9
    # Tensors of different scale agree in their ranks even if shuffled within.
    assert frame["spearman_floor"]["all tensors"] > 0.02
    assert found.value("spearman") == frame["spearman"]["all tensors"]
    assert found.value("cosine", "2.bias") == frame["cosine"]["2.bias"]
    assert "not a Fisher" in found.what


# Would catch: tokens and examples mixed up in the ratio.
def test_what_the_trace_is_per():
    x, y = data()
    model = net()
    recycled = every_batch(model, x, y, 1)
    mean = compared(model, x, y, recycled=recycled).to_frame()["trace_ratio"]
    whole = compared(model, x, y, recycled=recycled, per="sum").to_frame()["trace_ratio"]
    np.testing.assert_allclose(mean, whole * N, rtol=1e-9)


def test_only_a_part_of_the_parameters():
    x, y = data()
    model = net()
    fisher = fs.estimate(
        model, (x, y), likelihood="regression", parameters="2.*", halves=False, progress=False
    )
    found = fs.compare_recycled(every_batch(model, x, y, 1), fisher)
    assert list(found.to_frame()["tensor"]) == ["all tensors", "2.weight", "2.bias"]
    assert found.outcome == "no_halves"
    assert found.to_frame()["cosine_ceiling"].isna().all()
    assert found.value("cosine") == pytest.approx(1, rel=1e-5)


def test_nothing_to_compare_with():
    x, y = data()
    model = fitted(*data())
    with torch.no_grad():
        y = model(x.double())
    found = compared(model, x.double(), y.detach())
    assert found.outcome == "zero" or found.value("cosine") > 0
    zero = nn.Linear(D, K)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    found = compared(zero, x, torch.zeros(N, K))
    assert found.outcome == "zero" and math.isnan(found.value("cosine"))


# Would catch: a KeyError, or numbers of another model compared.
def test_what_does_not_fit_is_named():
    x, y = data()
    model = net()
    recycled = every_batch(model, x, y, 1)
    fisher = fs.estimate(model, (x, y), likelihood="regression", progress=False)
    grouped = fs.estimate(
        model, (x, y), likelihood="regression", structure="grouped", progress=False
    )
    with pytest.raises(fs.ParameterError, match="one number per parameter"):
        fs.compare_recycled(recycled, grouped)
    with pytest.raises(fs.ParameterError, match="k_fraction=0"):
        fs.compare_recycled(recycled, fisher, k_fraction=0)
    with pytest.raises(fs.ParameterError, match="per='row'"):
        fs.compare_recycled(recycled, fisher, per="row")  # type: ignore[arg-type]
    with pytest.raises(fs.ParameterError, match="metric='rank'"):
        fs.compare_recycled(recycled, fisher).value("rank")  # type: ignore[arg-type]
    with pytest.raises(fs.ParameterError, match="'3.weight' was not compared; use all tensors"):
        fs.compare_recycled(recycled, fisher).value("cosine", "3.weight")
    model[0].requires_grad_(False)
    optimizer = optim.AdamW(model[2].parameters())
    loss(model, x, y).backward()
    optimizer.step()
    part = fs.from_optimizer(optimizer, model)
    with pytest.raises(fs.ParameterError, match=r"AdamW has no .*'0.weight' \(frozen.*list\("):
        fs.compare_recycled(part, fisher)
    other = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K + 1))
    wider = every_batch(other, x, torch.zeros(N, K + 1), 1)
    with pytest.raises(fs.IdentityError, match=r"'2.weight' has shape \(5, 8\) in the Adagrad"):
        fs.compare_recycled(wider, fisher)
