"""The Fisher merge against dense algebra, closed forms, and the optimum of both tasks."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.surgery import merge
from structures.matrices import CASES, Case, make
from surgery.bags import Bag, bag, flat, matrix, own, pair

# Which structures have a direct solution for two models; the others go by conjugate gradients.
TOLERANCE = {case: 1e-6 if case.startswith("ekfac") else 1e-10 for case in CASES}


def optimum(models, fishers, weights, start=None):
    """The closest minimum to the start, by the pseudo-inverse of the explicit matrix."""
    whole = sum(w * matrix(f) for w, f in zip(weights, fishers, strict=True))
    if start is None:
        start = sum(w * flat(m) for w, m in zip(weights, models, strict=True)) / sum(weights)
    pull = sum(
        w * matrix(f) @ (flat(m) - start) for w, f, m in zip(weights, fishers, models, strict=True)
    )
    return start + np.linalg.pinv(whole, rcond=1e-11, hermitian=True) @ pull


# Would catch: a scalar per tensor instead of per element, G and A swapped, a transposed weight
# read as rows, the number of rows forgotten in one of the two, denominators that cancel only if
# they are equal, weights squared.
@pytest.mark.parametrize("case", CASES)
def test_two_models_against_a_dense_solve(case):
    models, fishers = pair(case)
    merged = merge(models, fishers, weights=[0.7, 2.0], normalize=False)
    expected = optimum(models, fishers, [0.7, 2.0])
    np.testing.assert_allclose(flat(merged.model), expected, rtol=0, atol=TOLERANCE[case])
    assert merged.outcome == "solved"
    # Wherever a curved direction is left, the mean is another point.
    assert np.abs(expected - (0.7 * flat(models[0]) + 2 * flat(models[1])) / 2.7).max() > 1e-2


# Would catch: the norm taken per tensor, squared, of the sums instead of the mean per unit.
@pytest.mark.parametrize("case", ["diagonal", "grouped", "block", "kfac mixed", "ekfac joint"])
def test_weights_are_divided_by_the_norm_of_the_whole_fisher(case):
    models, fishers = pair(case)
    fishers[1] = dataclasses.replace(
        fishers[1],
        sums={k: t if ":inputs" in k or ":rows" in k or ":gradients" in k and "ek" in case
              else 1e7 * t for k, t in fishers[1].sums.items()},
    )  # fmt: skip
    norms = [np.linalg.norm(matrix(f)) for f in fishers]
    merged = merge(models, fishers, weights=[0.7, 2.0])
    plain = merge(models, fishers, weights=[0.7 / norms[0], 2.0 / norms[1]], normalize=False)
    np.testing.assert_allclose(flat(merged.model), flat(plain.model), rtol=1e-6, atol=1e-8)
    expected = optimum(models, fishers, [0.7 / norms[0], 2.0 / norms[1]])
    np.testing.assert_allclose(flat(merged.model), expected, rtol=1e-5, atol=1e-5)


# Would catch: conjugate gradients that stop early without saying so, and more than two models
# merged in turn.
@pytest.mark.parametrize(
    "case", ["diagonal", "block", "kfac shared", "kfac widest 2", "ekfac mixed"]
)
def test_three_models_against_a_dense_solve(case):
    models, fishers = pair(case, 3)
    merged = merge(models, fishers, weights=[1, 2, 0.5], normalize=False)
    expected = optimum(models, fishers, [1, 2, 0.5])
    np.testing.assert_allclose(flat(merged.model), expected, rtol=0, atol=1e-6)
    assert merged.outcome == "solved"
    factored = merged.table.rule == "conjugate gradients"
    assert factored.any() == ("kfac" in case)
    assert (merged.table.iterations[factored] > 1).all()
    assert merged.table.residual.max() < 1e-7


# Would catch: a merge that claims to be solved, or that hides the residual.
def test_too_few_iterations_are_an_outcome():
    models, fishers = pair("kfac shared", 3)
    merged = merge(models, fishers, iterations=2)
    assert merged.outcome == "not_converged"
    assert (merged.table.iterations == 2).all()
    assert merged.table.residual.max() > 1e-4


# Would catch: the floor in units of one Fisher for all, on the entries of a factor, or forgotten
# in one of the routes; and a direct solution that ignores it.
@pytest.mark.parametrize("case", ["diagonal", "grouped", "block", "kfac joint", "ekfac joint"])
def test_the_floor_is_added_to_every_diagonal(case):
    models, fishers = pair(case)
    merged = merge(models, fishers, floor=0.3, normalize=False)
    terms = [matrix(f) for f in fishers]
    terms = [t + 0.3 * t.diagonal().mean() * np.eye(len(t)) for t in terms]
    pull = sum(t @ flat(m) for t, m in zip(terms, models, strict=True))
    np.testing.assert_allclose(flat(merged.model), np.linalg.solve(sum(terms), pull), atol=1e-6)


# Would catch: costs that leave out cross terms, count weights or norms, halve twice, or are taken
# before the merged weights are rounded to the models' type.
@pytest.mark.parametrize("method", ["fisher", "mean"])
@pytest.mark.parametrize(
    "case", ["diagonal", "grouped", "dense", "kfac shared joint", "ekfac mixed"]
)
def test_costs_are_half_the_quadratic_form(case, method):
    shapes = CASES[case].parameters
    models = [bag(shapes, seed, torch.bfloat16) for seed in (0, 1)]
    fishers = [own(case, m, 10 + i) for i, m in enumerate(models)]
    merged = merge(models, fishers, method=method, weights=[1, 3])
    assert {p.dtype for p in merged.model.parameters()} == {torch.bfloat16}
    for number, (model, fisher) in enumerate(zip(models, fishers, strict=True)):
        move = flat(merged.model) - flat(model)
        rows = merged.table[merged.table.model == number].set_index("tensor")
        assert list(rows.index) == list(shapes)
        assert rows.cost.sum() == pytest.approx(0.5 * move @ matrix(fisher) @ move, rel=1e-9)
        assert merged.costs[number] == pytest.approx(rows.cost.sum(), rel=1e-12)
        parts = np.split(0.5 * move * (matrix(fisher) @ move), np.cumsum(rows.n_parameters)[:-1])
        np.testing.assert_allclose(rows.cost, [p.sum() for p in parts], rtol=1e-7, atol=1e-9)
        parts = np.split(move, np.cumsum(rows.n_parameters)[:-1])
        np.testing.assert_allclose(rows.distance, [np.linalg.norm(p) for p in parts], rtol=1e-9)


# Would catch: a merge that isn't the cheapest for the weights that it was given.
@pytest.mark.parametrize("case", ["diagonal", "kfac shared", "block"])
def test_no_other_method_costs_less(case):
    models, fishers = pair(case)
    cost = {
        how: sum(merge(models, fishers, method=how, **options).costs)
        for how, options in {"fisher": {"normalize": False}, "mean": {}}.items()
    }
    assert cost["fisher"] < 0.95 * cost["mean"]


def emptied(fisher, factor=0.0):
    return dataclasses.replace(fisher, sums={k: factor * t if ":rows" not in k else t
                                             for k, t in fisher.sums.items()})  # fmt: skip


# Would catch: 0/0, and a mean where a base is given.
@pytest.mark.parametrize("case", ["diagonal", "block", "kfac joint", "ekfac joint"])
@pytest.mark.parametrize("normalize", [True, False])
def test_where_no_fisher_has_a_say(case, normalize):
    models, fishers = pair(case)
    nothing = [emptied(f) for f in fishers]
    merged = merge(models, nothing, weights=[1, 3], normalize=normalize)
    mean = 0.25 * flat(models[0]) + 0.75 * flat(models[1])
    np.testing.assert_allclose(flat(merged.model), mean, rtol=1e-12)
    assert merged.costs == (0.0, 0.0)
    sizes = merged.table[merged.table.model == 0].groupby("fallback").n_parameters.sum()
    assert (sizes.index > 0).all()
    base = bag(CASES[case].parameters, 7)
    merged = merge(models, nothing, base=base, normalize=normalize)
    np.testing.assert_array_equal(flat(merged.model), flat(base))
    # One Fisher that is zero has no say; the other takes all that it knows.
    merged = merge(models, [nothing[0], fishers[1]], normalize=normalize)
    np.testing.assert_allclose(flat(merged.model), flat(models[1]), rtol=1e-7, atol=1e-7)


def deficient(fisher, rank, rng):
    """The same Fisher with factors, or a matrix, of low rank."""
    sums = {}
    for key, tensor in fisher.sums.items():
        sums[key] = tensor
        if tensor.ndim == 2 and ":eigenvalues" not in key:
            scores = torch.from_numpy(rng.normal(size=(min(rank, len(tensor)), len(tensor))))
            sums[key] = scores.T @ scores
    return dataclasses.replace(fisher, sums=sums)


# Would catch: infinities along directions that neither task knows, and models dragged there.
@pytest.mark.parametrize("case", ["block", "dense", "kfac shared joint", "kfac transposed"])
def test_singular_fishers_move_nothing_for_nothing(case):
    rng = np.random.default_rng(0)
    models, fishers = pair(case)
    fishers = [deficient(f, 2, rng) for f in fishers]
    merged = merge(models, fishers, normalize=False)
    whole = sum(map(matrix, fishers))
    pull = sum(matrix(f) @ flat(m) for f, m in zip(fishers, models, strict=True))
    np.testing.assert_allclose(whole @ flat(merged.model), pull, atol=1e-8 * np.abs(pull).max())
    assert merged.table.fallback.max() > 0
    largest = max(np.abs(flat(m)).max() for m in models)
    assert np.abs(flat(merged.model)).max() < 100 * largest
    if case in {"block", "dense"}:
        expected = optimum(models, fishers, [1, 1])
        np.testing.assert_allclose(flat(merged.model), expected, atol=1e-8)


# Would catch: a floor that reaches the products but not the directions that are searched.
@pytest.mark.parametrize("case", ["block", "kfac joint", "kfac shared"])
def test_a_floor_gives_every_direction_a_say(case):
    rng = np.random.default_rng(0)
    models, fishers = pair(case)
    fishers = [deficient(f, 2, rng) for f in fishers]
    merged = merge(models, fishers, floor=0.3, normalize=False)
    terms = [matrix(f) for f in fishers]
    terms = [t + 0.3 * t.diagonal().mean() * np.eye(len(t)) for t in terms]
    pull = sum(t @ flat(m) for t, m in zip(terms, models, strict=True))
    np.testing.assert_allclose(flat(merged.model), np.linalg.solve(sum(terms), pull), atol=1e-6)
    assert merged.table.fallback.max() == 0


# Would catch: conjugate gradients without a preconditioner (1000 iterations, a residual of 1e-5,
# weights 1500 away), and ones that search directions below the rounding of float32 sums (none:
# the mean, which costs twice as much).
def test_three_estimated_kfacs_that_know_few_directions_in_float32():
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 24, generator=g)
    models, fishers = [], []
    for seed in range(3):
        scales = torch.logspace(0, -2, 6)[torch.randperm(6, generator=g)]
        x = (torch.randn(80, 6, generator=g) * scales) @ mix
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models.append(nn.Linear(24, 5))
        data = x, torch.randint(5, (80,), generator=g)
        options = {"structure": "kfac", "fisher_type": "type-2", "progress": False}
        fishers.append(fs.estimate(models[-1], data, **options))
    merged = merge(models, fishers)
    assert merged.outcome == "solved"
    assert 1 < merged.table.iterations.max() < 30
    assert merged.table.fallback.min() > 0
    # The least costly of all, by float64 algebra within what float32 sums resolve.
    terms = [t / np.linalg.norm(t) for t in map(matrix, fishers)]
    thetas = [flat(m) for m in models]
    mean = sum(thetas) / 3
    pull = sum(t @ (theta - mean) for t, theta in zip(terms, thetas, strict=True))
    best = mean + np.linalg.pinv(sum(terms), rcond=1e-6, hermitian=True) @ pull

    def cost(x):
        return sum((x - th) @ t @ (x - th) for t, th in zip(terms, thetas, strict=True))

    found = flat(merged.model)
    assert cost(found) == pytest.approx(cost(best), rel=1e-4)
    assert cost(found) < 0.6 * cost(mean)
    assert np.linalg.norm(found - mean) == pytest.approx(np.linalg.norm(best - mean), rel=0.05)


def diagonal(model, values):
    """A diagonal Fisher of one example with given entries."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    sums = {n: torch.tensor(values[n], dtype=torch.float32).reshape(shapes[n]) for n in shapes}
    identity = {"parameters": shapes, "model_fingerprint": model_fingerprint(model)}
    return make(Case("diagonal"), sums=sums, ids="a", **identity)


# Would catch: an epsilon that dominates (the neighbour: 0.5002), also against Fishers so small
# that their squares vanish in float32.
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-30, 1e-38, 1e30])
@pytest.mark.parametrize("normalize", [True, False])
def test_tiny_fishers_weigh_as_much_as_large_ones(size, normalize):
    one, two = Bag({"w": torch.ones(2)}), Bag({"w": torch.zeros(2)})
    fishers = [diagonal(one, {"w": [9 * size, size]}), diagonal(two, {"w": [size, 9 * size]})]
    merged = merge([one, two], fishers, normalize=normalize)
    torch.testing.assert_close(merged.model.w.detach(), torch.tensor([0.9, 0.1]))


# Would catch: one weight for a whole tensor, and a name found inside of another.
@pytest.mark.parametrize("names", [("fc_weight", "big_fc_weight"), ("big_fc_weight", "fc_weight")])
def test_every_element_has_its_own_weight_under_its_whole_name(names):
    def net(value):
        return Bag({name: torch.full((2,), value) for name in names})

    one, two = net(1.0), net(0.0)
    fishers = [
        diagonal(one, {"fc_weight": [9.0, 1.0], "big_fc_weight": [1.0, 9.0]}),
        diagonal(two, {"fc_weight": [1.0, 9.0], "big_fc_weight": [9.0, 1.0]}),
    ]
    merged = merge([one, two], fishers, normalize=False).model
    torch.testing.assert_close(merged.fc_weight.detach(), torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(merged.big_fc_weight.detach(), torch.tensor([0.1, 0.9]))


# Would catch: uncovered parameters left at the first model's, or merged by a neighbour's Fisher.
def test_what_no_fisher_covers_becomes_the_mean():
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    data = torch.randn(8, 3), torch.randint(2, (8,))
    fishers = [fs.estimate(m, data, parameters="weight", progress=False) for m in models]
    merged = merge(models, fishers, weights=[1, 3])
    torch.testing.assert_close(
        merged.model.bias.detach(), (0.25 * models[0].bias + 0.75 * models[1].bias).detach()
    )
    rows = merged.table.set_index(["tensor", "model"])
    assert set(rows.loc["bias"].rule) == {"mean"}
    assert rows.loc["bias"].cost.isna().all()
    assert set(rows.loc["weight"].rule) == {"elementwise"}
    assert merged.costs == pytest.approx(tuple(rows.loc["weight"].cost))
    assert rows.loc["weight"].cost.gt(0).all()


# Would catch: anything that keeps the merge of exact Fishers from being the optimum of the union
# of both data sets: for a linear model with squared error it is, exactly.
@pytest.mark.parametrize("structure", ["dense", "block(per=layer)"])
def test_two_regressions_merge_into_the_joint_optimum(structure):
    g = torch.Generator().manual_seed(0)
    sizes, truth = (40, 25), torch.randn(4, 2, generator=g, dtype=torch.float64)
    data, models = [], []
    for n in sizes:
        x = torch.randn(n, 4, generator=g, dtype=torch.float64) @ torch.randn(
            4, 4, generator=g, dtype=torch.float64
        )
        y = x @ truth + torch.randn(n, 2, generator=g, dtype=torch.float64)
        data.append((x, y))
        models.append(fitted(x, y))
    fishers = [
        fs.estimate(m, d, structure=structure, fisher_type="type-2", likelihood="regression",
                    progress=False) for m, d in zip(models, data, strict=True)
    ]  # fmt: skip
    merged = merge(models, fishers, weights=sizes, normalize=False)
    joint = fitted(torch.cat([d[0] for d in data]), torch.cat([d[1] for d in data]))
    np.testing.assert_allclose(flat(merged.model), flat(joint), rtol=1e-10, atol=1e-10)
    for (x, y), model, cost in zip(data, models, merged.costs, strict=True):
        losses = [0.5 * (m(x) - y).square().sum(1).mean().item() for m in (merged.model, model)]
        assert cost == pytest.approx(losses[0] - losses[1], rel=1e-8)


def fitted(x, y):
    model = nn.Linear(4, 2).double()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y)
    with torch.no_grad():
        model.weight.copy_(solution.solution[:-1].T)
        model.bias.copy_(solution.solution[-1])
    return model


# Would catch: a merge of equal models that moves them.
@pytest.mark.parametrize("case", ["diagonal", "dense", "kfac joint", "ekfac joint"])
def test_equal_models_stay_what_they_are(case):
    model = bag(CASES[case].parameters, 0)
    models = [model, copy.deepcopy(model), copy.deepcopy(model)]
    merged = merge(models, [own(case, m, 10 + i) for i, m in enumerate(models)])
    np.testing.assert_allclose(flat(merged.model), flat(model), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(merged.costs, 0, atol=1e-20)
