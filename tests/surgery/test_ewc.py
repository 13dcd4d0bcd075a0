"""The penalty against closed forms and against autograd through the explicit matrix."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from oracles import models, rows
from structures.matrices import CASES
from surgery.bags import bag, flat, matrix, own


def moved(model: nn.Module, seed: int = 5, size: float = 0.1) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))


def gradients(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters()])


def regression(count: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=g, dtype=torch.float64)
    return x, torch.randn(count, 2, generator=g, dtype=torch.float64)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


def solve(model: nn.Linear, tasks) -> None:
    """Least squares over all tasks together: joint training in closed form."""
    x = torch.cat([x for x, _ in tasks])
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    found = torch.linalg.lstsq(design, torch.cat([y for _, y in tasks])).solution
    with torch.no_grad():
        model.weight.copy_(found[:-1].T)
        model.bias.copy_(found[-1])


def exact(model: nn.Module, task) -> fs.Fisher:
    return fs.estimate(model, task, structure="dense", fisher_type="type-2",
                       likelihood="regression", progress=False)  # fmt: skip


def penalised(model: nn.Module, task, ewc: fs.EWC) -> float:
    """Largest entry of the gradient of (mean loss of a task + penalty)."""
    model.zero_grad()
    x, y = task
    (0.5 * (model(x) - y).square().sum(1).mean()).backward()
    ewc.add_gradient()
    return float(np.abs(gradients(model)).max())


# Catches: the factor 1/2 that separates the conventions of the literature, a mean where a sum is
# meant, a Fisher per sum instead of per example: none of them leaves the joint optimum at rest.
@pytest.mark.parametrize("old", [12, 30])
def test_linear_regression_with_the_exact_fisher_is_joint_training(old: int) -> None:
    a, b = regression(old, 1), regression(20, 2)
    model = linear()
    solve(model, [a])
    ewc = fs.EWC(model, exact(model, a), strength=old / 20)
    assert penalised(model, b, ewc) > 1e-2
    solve(model, [a, b])
    assert penalised(model, b, ewc) < 1e-12


# Catches: an online anchor that stays at the first task, a decay applied to the new Fisher.
def test_online_with_three_tasks_is_joint_training_too() -> None:
    a, b, c = (regression(20, seed) for seed in (1, 2, 3))
    model = linear()
    solve(model, [a])
    ewc = fs.EWC(model, exact(model, a), strength=1.0, decay=1.0)
    solve(model, [a, b])
    assert penalised(model, b, ewc) < 1e-12
    ewc.consolidate(exact(model, b))
    solve(model, [a, b, c])
    assert penalised(model, c, ewc) < 1e-12


# Catches: separate terms that share one anchor.
def test_separate_terms_around_each_tasks_own_optimum_are_joint_training() -> None:
    a, b, c = (regression(20, seed) for seed in (1, 2, 3))
    first, second, model = linear(), linear(), linear()
    solve(first, [a])
    solve(second, [b])
    ewc = fs.EWC(model, exact(first, a), strength=1.0, anchor=first)
    ewc.consolidate(exact(second, b), anchor=second)
    solve(model, [a, b, c])
    assert penalised(model, c, ewc) < 1e-12


# Catches: a structure whose product is taken without its denominator, in the wrong layout
# (Conv1D, joint bias, shared factors), or whose value and gradient disagree.
@pytest.mark.parametrize("storage", ["model", "disk"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_explicit_matrix(case, storage, tmp_path) -> None:
    model = bag(CASES[case].parameters)
    fisher = own(case, model, 3)
    folder = tmp_path / "kept" if storage == "disk" else None
    ewc = fs.EWC(model, fisher, strength=0.7, per="unit", storage=storage, folder=folder)
    anchor = flat(model)
    assert ewc.penalty() == 0
    moved(model)
    delta = flat(model) - anchor
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    found = ewc.add_gradient(scale=4.0)
    expected = 0.7 * matrix(fisher) @ delta
    np.testing.assert_allclose(found, 0.5 * delta @ expected, rtol=1e-9)
    np.testing.assert_allclose(ewc.penalty(), found, rtol=1e-12)
    np.testing.assert_allclose(gradients(model), 1 + 4 * expected, rtol=1e-9, atol=1e-11)


# Catches: decay of the wrong summand, blocks of earlier tasks that lose their decay on the way.
@pytest.mark.parametrize("case", ["diagonal", "grouped", "kfac joint", "ekfac shared", "block"])
def test_several_consolidations_are_the_formula(case) -> None:
    model = bag(CASES[case].parameters)
    online, separate, fishers, anchors = None, None, [], []
    for seed in range(3):
        moved(model, seed)
        anchors.append(flat(model))
        fishers.append(own(case, model, seed))
        if online is None:
            online = fs.EWC(model, fishers[0], strength=2.0, decay=0.5, per="unit")
            separate = fs.EWC(model, fishers[0], strength=2.0, per="unit")
        else:
            online.consolidate(fishers[-1])
            separate.consolidate(fishers[-1])
    moved(model, 9)
    here = flat(model)
    total = sum(0.5 ** (2 - k) * matrix(f) for k, f in enumerate(fishers))
    d = here - anchors[-1]
    np.testing.assert_allclose(online.penalty(), d @ total @ d, rtol=1e-9)
    each = [(here - a) @ matrix(f) @ (here - a) for a, f in zip(anchors, fishers, strict=True)]
    np.testing.assert_allclose(separate.penalty(), sum(each), rtol=1e-9)


# Catches: Fishers of one model that overwrite instead of adding up.
def test_several_fishers_of_the_same_weights_add_up() -> None:
    model = bag(CASES["diagonal"].parameters)
    pair = [own("diagonal", model, seed) for seed in (1, 2)]
    ewc = fs.EWC(model, pair, strength=1.0, per="unit")
    anchor = flat(model)
    moved(model)
    d = flat(model) - anchor
    expected = 0.5 * d @ (matrix(pair[0]) + matrix(pair[1])) @ d
    np.testing.assert_allclose(ewc.penalty(), expected, rtol=1e-9)


def language_model(**options):
    case = models.fresh("llama-tied")
    fisher = fs.estimate(
        case.model, rows.examples(models.fresh("llama-tied").rows), progress=False, **options
    )
    return case.model, fisher


# Catches: a tied weight penalised under both of its names; a mean per example where the
# training loss is one per token.
def test_tied_weights_count_once_and_tokens_are_the_unit() -> None:
    model, fisher = language_model()
    ewc = fs.EWC(model, fisher, strength=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved(model)
    expected = 0.5 * sum(
        float((fisher.sums[n] / fisher.n_tokens * (p.detach() - before[n]).square()).sum())
        for n, p in model.named_parameters()
    )
    assert fisher.n_tokens > fisher.n_examples
    assert ewc.add_gradient() == pytest.approx(expected, rel=1e-4)
    tied = model.get_input_embeddings().weight
    name = next(n for n, p in model.named_parameters() if p is tied)
    wanted = fisher.sums[name] / fisher.n_tokens * (tied.detach() - before[name])
    torch.testing.assert_close(tied.grad, wanted, rtol=1e-4, atol=1e-9)


# Catches: a model that is changed, a random number that is drawn, hooks or modes left behind,
# gradients of parameters that are frozen.
def test_model_is_untouched_but_for_gradients() -> None:
    model, fisher = language_model()
    model.train()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    ewc = fs.EWC(model, fisher, strength=1.0)
    moved(model)
    state = copy.deepcopy(model.state_dict())
    ewc.penalty()
    assert all(p.grad is None for p in model.parameters())
    ewc.add_gradient()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert frozen.grad is None and model.training
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is not None and p.grad.grad_fn is None
               for p in model.parameters() if p.requires_grad)  # fmt: skip


# Catches: an anchor in half precision, which would pull at a model that has not moved.
@pytest.mark.parametrize("storage", ["model", "cpu", "disk"])
def test_fisher_in_half_precision(storage, tmp_path) -> None:
    model, fisher = language_model()
    full = fs.EWC(model, fisher, strength=1.0)
    folder = tmp_path / "kept" if storage == "disk" else None
    half = fs.EWC(model, fisher, strength=1.0, storage=storage, folder=folder, dtype=torch.bfloat16)
    count = sum(p.numel() for p in model.parameters())
    assert full.nbytes == {"model": 8 * count}
    assert half.nbytes == {storage: 6 * count}
    assert half.penalty() == 0
    moved(model)
    assert half.penalty() == pytest.approx(full.penalty(), rel=2**-8)
    model.bfloat16()
    data = rows.examples(models.fresh("llama-tied").rows)
    fisher = fs.estimate(model, data, progress=False)
    both = fs.EWC(model, fisher, strength=1.0, dtype=torch.bfloat16)
    assert both.nbytes == {"model": 4 * count}


# Catches: a second consolidation on disk that overwrites what a first term still reads.
def test_disk_keeps_every_term(tmp_path) -> None:
    model = bag(CASES["diagonal"].parameters)
    kept = fs.EWC(model, own("diagonal", model, 1), strength=1.0, storage="disk", folder=tmp_path)
    held = fs.EWC(model, own("diagonal", model, 1), strength=1.0)
    moved(model, 1)
    for ewc in (kept, held):
        ewc.consolidate(own("diagonal", model, 2))
    moved(model, 2)
    assert kept.penalty() == held.penalty() > 0


class TestBadInput:
    # Catches: the Fisher of another model, or of this one at other weights, taken silently.
    def test_fisher_of_other_weights(self) -> None:
        model, fisher = language_model()
        moved(model)
        with pytest.raises(fs.IdentityError, match="anchor="):
            fs.EWC(model, fisher, strength=1.0)
        original = models.fresh("llama-tied").model
        assert fs.EWC(model, fisher, strength=1.0, anchor=original).penalty() > 0

    def test_fisher_of_another_model(self) -> None:
        with pytest.raises(fs.IdentityError, match="other weights"):
            fs.EWC(models.fresh("gpt2").model, language_model()[1], strength=1.0)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"strength": -1.0}, "strength=-1.0"),
            ({"strength": float("nan")}, "strength=nan"),
            ({"strength": 1.0, "decay": 1.5}, "decay=1.5"),
            ({"strength": 1.0, "per": "word"}, "per='word'"),
            ({"strength": 1.0, "storage": "tape"}, "storage='tape'"),
            ({"strength": 1.0, "storage": "disk"}, "needs a folder"),
            ({"strength": 1.0, "folder": "there"}, "needs a folder"),
            ({"strength": 1.0, "dtype": torch.float16}, "dtype=torch.float16"),
        ],
    )
    def test_options(self, options, said) -> None:
        model = bag(CASES["diagonal"].parameters)
        with pytest.raises(fs.ParameterError, match=said):
            fs.EWC(model, own("diagonal", model, 1), **options)

    def test_no_fisher(self) -> None:
        model = bag(CASES["diagonal"].parameters)
        with pytest.raises(fs.ParameterError, match="fisher is empty"):
            fs.EWC(model, [], strength=1.0)
        with pytest.raises(fs.ParameterError, match="fisher 0 is a str"):
            fs.EWC(model, ["no"], strength=1.0)

    # Catches: factors rounded until they are no longer positive semi-definite.
    def test_matrices_in_half_precision(self) -> None:
        model = bag(CASES["kfac joint"].parameters)
        with pytest.raises(fs.ParameterError, match="positive semi-definite"):
            fs.EWC(model, own("kfac joint", model, 1), strength=1.0, dtype=torch.bfloat16)
