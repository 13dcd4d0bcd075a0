"""Merges without a Fisher against the published algorithms, written again from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs
from fisherscope.surgery import merge
from structures.matrices import CASES
from surgery.bags import Bag, bag, flat, own

SHAPES = {"a.weight": (8, 5), "b": (40,), "c": (4, 2, 5)}
SHAPES = {name.replace(".", "_"): shape for name, shape in SHAPES.items()}


def family(count=3, dtype=torch.float32):
    base = bag(SHAPES, 100, dtype)
    models = []
    for seed in range(count):
        move = dict(bag(SHAPES, seed, dtype).named_parameters())
        models.append(Bag({n: (p + 0.3 * move[n]).detach() for n, p in base.named_parameters()}))
    return base, models


def mergekit(base, tensors, weights, *, density=1.0, consensus=False, normalize=False, scale=1.0):
    """The arithmetic of mergekit's generalised task arithmetic, for one tensor.

    Trim each task vector to its ``int(density * n)`` largest entries, weight, elect the sign of
    the sum (that of zero is positive), sum what agrees, divide by the weights that agree.
    """
    deltas = torch.stack([t - base for t in tensors])
    if density < 1:
        for delta in deltas:
            order = torch.argsort(delta.abs().reshape(-1), descending=True)
            keep = torch.zeros_like(order, dtype=torch.bool)
            keep[order[: int(density * len(order))]] = True
            delta *= keep.reshape(delta.shape)
    factors = torch.tensor(weights).reshape(-1, *[1] * base.ndim)
    mask = torch.ones_like(deltas)
    if consensus:
        majority = torch.where((factors * deltas).sum(0) >= 0, 1, -1)
        mask = ((factors * deltas).sign() == majority).float()
    mixed = (factors * deltas * mask).sum(0)
    if normalize:
        divisor = (factors * mask).sum(0)
        divisor[divisor == 0] = 1
        mixed /= divisor
    return base + scale * mixed


def official_ties(base, models, density):
    """TIES as in its paper: one flattened task vector per model, trimmed as a whole."""
    origin = np.concatenate([p.ravel() for p in base])
    moves = np.stack([np.concatenate([p.ravel() for p in m]) for m in models]) - origin
    for move in moves:
        small = np.argsort(-np.abs(move))[int(density * len(move)) :]
        move[small] = 0
    elected = np.sign(moves.sum(0))
    agree = (np.sign(moves) == elected) & (moves != 0)
    total = np.where(agree, moves, 0).sum(0)
    return origin + total / np.maximum(agree.sum(0), 1)


def tensors(model):
    return [p.detach().numpy() for p in model.parameters()]


# Would catch: weights that are not divided by their sum, or divided twice.
def test_the_weighted_mean():
    _, models = family(dtype=torch.float64)
    merged = merge(models, method="mean", weights=[1, 2, 5])
    expected = sum(w * flat(m) for w, m in zip([1, 2, 5], models, strict=True)) / 8
    np.testing.assert_allclose(flat(merged.model), expected, rtol=1e-14)
    assert merged.table.cost.isna().all()
    assert all(map(np.isnan, merged.costs))
    for n, p in merged.model.named_parameters():
        expected = mergekit(torch.zeros(SHAPES[n]).double(),
                            [dict(m.named_parameters())[n].detach() for m in models],
                            [1.0, 2.0, 5.0], normalize=True)  # fmt: skip
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


# Would catch: a scale on the base, weights that are normalised, negative ones refused.
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0], [1.0, -1.0, 0.0]])
def test_task_arithmetic_is_mergekits(weights):
    base, models = family()
    merged = merge(models, method="task-arithmetic", base=base, weights=weights, scale=0.3)
    for n, p in merged.model.named_parameters():
        own = [dict(m.named_parameters())[n].detach() for m in models]
        expected = mergekit(base.get_parameter(n).detach(), own, weights or [1.0] * 3, scale=0.3)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)
    forgotten = merge([models[0]], method="task-arithmetic", base=base, weights=[-1])
    np.testing.assert_allclose(flat(forgotten.model), 2 * flat(base) - flat(models[0]), atol=1e-6)


# Would catch: a threshold over all tensors, a sign by count instead of mass, trimmed zeros that
# vote or are counted, a mean over all models instead of those that agree.
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0]])
@pytest.mark.parametrize("density", [0.05, 0.25, 1.0])
def test_ties_per_tensor_is_mergekits(weights, density):
    base, models = family()
    options = {"method": "ties", "base": base, "weights": weights, "scale": 0.7}
    merged = merge(models, density=density, trim="tensor", **options)
    for n, p in merged.model.named_parameters():
        own = [dict(m.named_parameters())[n].detach() for m in models]
        expected = mergekit(base.get_parameter(n).detach(), own, weights or [1.0] * 3,
                            density=density, consensus=True, normalize=True, scale=0.7)  # fmt: skip
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)


# Would catch: trimming per tensor, where the paper trims the whole vector: large moves of one
# tensor then hide small ones of another.
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_trims_the_whole_vector_by_default(density):
    base, models = family(dtype=torch.float64)
    with torch.no_grad():
        for m in models:
            m.b += 9 * (m.b - base.b)
    merged = merge(models, method="ties", base=base, density=density)
    expected = official_ties(tensors(base), [tensors(m) for m in models], density)
    np.testing.assert_allclose(flat(merged.model), expected, rtol=1e-12)
    other = merge(models, method="ties", base=base, density=density, trim="tensor")
    assert np.abs(flat(other.model) - expected).max() > 0.1


# Would catch: a sign that is elected by convention where the tasks cancel.
def test_ties_leaves_the_base_where_tasks_cancel():
    base, up, down = (Bag({"w": torch.tensor([v, 1.0])}) for v in (0.5, 1.5, -0.5))
    merged = merge([up, down], method="ties", base=base, density=1.0)
    assert merged.model.w.tolist() == [0.5, 1.0]


# Would catch: Fishers that change what another method does, or costs that it doesn't get.
@pytest.mark.parametrize("case", ["diagonal", "kfac shared joint"])
@pytest.mark.parametrize("method", ["mean", "task-arithmetic", "ties"])
def test_fishers_only_price_the_other_methods(method, case):
    shapes = CASES[case].parameters
    base, *models = (bag(shapes, seed) for seed in range(3))
    fishers = [own(case, m, 10 + i) for i, m in enumerate(models)]
    options = {"method": method, "weights": [1, 2], **({} if method == "mean" else {"base": base})}
    plain = merge(models, **options)
    priced = merge(models, fishers, **options)
    np.testing.assert_array_equal(flat(priced.model), flat(plain.model))
    assert set(priced.table.rule) == {method}
    assert min(priced.costs) > 0
    assert sum(merge(models, fishers, normalize=False).costs) < sum(priced.costs)


BASE, MODELS = family()
WRONG = {
    "no method": ({"method": "slerp"}, "method='slerp'.*'mean'"),
    "no fishers": ({}, "needs fishers=.*method='mean'"),
    "no base": ({"method": "ties"}, "needs base="),
    "base": ({"method": "mean", "base": BASE}, "'mean' has no base="),
    "density": ({"method": "ties", "base": BASE, "density": 0.0}, "density=0.0"),
    "density above 1": ({"method": "ties", "base": BASE, "density": 1.5}, "density=1.5"),
    "trim": ({"method": "ties", "base": BASE, "trim": "row"}, "trim='row'.*'tensor'"),
    "scale": ({"method": "ties", "base": BASE, "scale": float("nan")}, "scale=nan"),
    "of ties": ({"method": "mean", "density": 0.5}, r"'mean' has no density=.*\['ties'\]"),
    "of fisher": ({"method": "mean", "floor": 0.5}, r"'mean' has no floor=.*\['fisher'\]"),
    "few weights": ({"method": "mean", "weights": [1, 2]}, "3 models, but 2 weights"),
    "negative": ({"method": "mean", "weights": [1, 2, -1]}, "at least 0"),
    "zero": ({"method": "mean", "weights": [0, 0, 0]}, "not all 0"),
    "infinite": ({"method": "mean", "weights": [1, 1, float("inf")]}, "finite"),
    "negative ties": ({"method": "ties", "base": BASE, "weights": [1, 2, -1]}, "at least 0"),
    "buffers": ({"method": "mean", "buffers": "mean"}, "buffers='mean'.*'first'"),
}


# Would catch: an option without effect, a mean that divides by zero, and a KeyError.
@pytest.mark.parametrize("wrong", WRONG)
def test_options_that_make_no_sense(wrong):
    options, said = WRONG[wrong]
    with pytest.raises(fs.ParameterError, match=said):
        merge(MODELS, **options)
