"""Masks that are really applied, and stay applied while training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.surgery import keep_pruned, prune, sparsity
from oracles import models, rows


def masks_of(model, seed=0, names=None):
    g = torch.Generator().manual_seed(seed)
    return {
        n: torch.rand(p.shape, generator=g) < 0.5
        for n, p in model.named_parameters()
        if names is None or n in names
    }


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# Would catch: masks read the wrong way round, transposed for Conv1D, applied to one of two tied
# names only, or applied to the model itself.
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "llama-untied", "mlp", "resnet"])
def test_masked_weights_are_zero_and_all_others_the_same(name):
    case = models.case(name)
    before, masks = weights(case.model), masks_of(case.model)
    pruned = prune(case.model, masks)
    for n, p in pruned.named_parameters():
        assert torch.equal(p.detach(), torch.where(masks[n], before[n], 0.0))
    assert all(torch.equal(p, before[n]) for n, p in case.model.named_parameters())
    ties = [len(dict(m.named_parameters(remove_duplicate=False))) - len(before)
            for m in (case.model, pruned)]  # fmt: skip
    assert ties[0] == ties[1]
    counts = sparsity(pruned)
    removed = {n: int((~m).sum()) for n, m in masks.items()}
    assert dict(zip(counts.table.tensor, counts.table.zeros, strict=True)) == removed
    assert counts.zeros == sum(removed.values())
    assert counts.n_parameters == sum(m.numel() for m in masks.values())
    assert counts.sparsity == pytest.approx(counts.zeros / counts.n_parameters)


# Would catch: a copy that shares storage with the model, carries its gradients, or loses its mode.
def test_the_copy_is_a_copy():
    case = models.fresh("gpt2")
    case.model.train()
    for p in case.model.parameters():
        p.grad = torch.ones_like(p)
    pruned = prune(case.model, masks_of(case.model))
    assert pruned.training
    assert all(p.grad is None for p in pruned.parameters())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in case.model.parameters())
    with torch.no_grad():
        for p in pruned.parameters():
            p.fill_(3.0)
    assert not any((p == 3).any() for p in case.model.parameters())


# Would catch: the second name of a tied tensor unknown, or a conflict of the two decided silently.
def test_tied_weights_are_pruned_once_under_any_name():
    model = models.case("gpt2").model
    (mask,) = masks_of(model, names=["transformer.wte.weight"]).values()
    for name in ("lm_head.weight", "transformer.wte.weight"):
        pruned = prune(model, {name: mask})
        assert pruned.lm_head.weight is pruned.transformer.wte.weight
        assert bool((pruned.lm_head.weight[~mask] == 0).all())
    prune(model, {"lm_head.weight": mask, "transformer.wte.weight": mask.clone()})
    with pytest.raises(fs.ParameterError, match="tied parameter 'transformer.wte.weight'"):
        prune(model, {"lm_head.weight": mask, "transformer.wte.weight": ~mask})


# Would catch: 0 * inf = NaN.
def test_infinite_weights_are_removed_too():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("inf"), 1.0]]))
    assert prune(model, {"weight": torch.tensor([[False, True]])}).weight.tolist() == [[0.0, 1.0]]


def train(model, optimizer, steps=3, clip=None):
    case = models.case("gpt2")
    ids = case.rows[0].inputs["input_ids"][None]
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or 1e9)))
        optimizer.step()
    return norms


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}


# Would catch: hooks on the gradient alone, which an optimizer's momentum from before the pruning
# gets past (as does anything that doesn't go through the gradient).
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_stay_zero_whatever_the_optimizer_remembers(optimizer):
    model = prune(models.case("gpt2").model, masks_of(models.case("gpt2").model, 1)).train()
    made = OPTIMIZERS[optimizer](model.parameters())
    train(model, made)  # unmasked: fills the optimizer's moments
    masks = masks_of(model, 2)
    pruned = prune(model, masks)
    with torch.no_grad():
        for p, q in zip(model.parameters(), pruned.parameters(), strict=True):
            p.copy_(q)
    before = weights(model)
    with keep_pruned(model, masks):
        train(model, made, steps=2)
        after = weights(model)
    for n, mask in masks.items():
        assert bool((after[n][~mask] == 0).all()), n
        if n != "transformer.wpe.weight":  # rows of positions that don't occur
            moved = after[n][mask] != before[n][mask]
            assert moved.float().mean() > 0.5, n
    train(model, made, steps=1)  # outside: free again, nothing left behind
    assert any(bool((p.detach()[~masks[n]] != 0).any()) for n, p in model.named_parameters())


# Would catch: masked gradients that still count when gradients are clipped.
def test_masked_gradients_are_zero():
    case = models.case("gpt2")
    masks = masks_of(case.model)
    model = prune(case.model, masks)
    ids = case.rows[0].inputs["input_ids"][None]
    model(input_ids=ids, labels=ids).loss.backward()
    plain = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    with keep_pruned(model, masks):
        model(input_ids=ids, labels=ids).loss.backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, torch.where(masks[n], plain[n], 0.0))


# Would catch: hooks that survive the block, or an exception within it.
def test_nothing_is_left_behind_after_an_exception():
    model = nn.Linear(3, 1)
    masks = {"weight": torch.tensor([[True, False, True]])}
    model = prune(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(RuntimeError, match="stop"), keep_pruned(model, masks):
        raise RuntimeError("stop")
    model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad.tolist() == [[1.0, 1.0, 1.0]]
    optimizer.step()
    assert model.weight[0, 1].item() == -1.0


# Would catch: another model's optimizer that is interfered with, and frozen weights that can't
# take a hook.
def test_only_the_pruned_model_is_held():
    masks = {"weight": torch.tensor([[True, False, True]])}
    model, other = prune(nn.Linear(3, 1), masks), nn.Linear(3, 1)
    model.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([*other.parameters(), model.bias], lr=1.0)
    with keep_pruned(model, masks):
        (model(torch.ones(1, 3)) + other(torch.ones(1, 3))).sum().backward()
        before = other.weight.detach().clone()
        optimizer.step()
    torch.testing.assert_close(other.weight.detach(), before - 1)


LINEAR = nn.Linear(3, 2)
KEEP = torch.ones(2, 3, dtype=torch.bool)
WRONG = {
    "empty": ({}, "masks is empty"),
    "unknown": ({"weights": KEEP}, "'weights', which is none of the 2 parameters"),
    "shape": ({"weight": KEEP.T}, r"'weight' with shape \(3, 2\).*\(2, 3\)"),
    "floats": ({"weight": KEEP.float()}, r"'weight' is torch.float32.*true = keep"),
    "list": ({"weight": [True]}, "'weight' is list"),
}


# Would catch: a mask that broadcasts, or is skipped without a word.
@pytest.mark.parametrize("how", ["prune", "keep"])
@pytest.mark.parametrize("wrong", WRONG)
def test_masks_that_do_not_fit(wrong, how):
    masks, said = WRONG[wrong]
    with pytest.raises(fs.ParameterError, match=said):
        if how == "prune":
            prune(LINEAR, masks)
        else:
            with keep_pruned(LINEAR, masks):
                pass


# Would catch: training a model that was never pruned.
def test_a_model_that_is_not_pruned_is_refused():
    mask = torch.tensor([[True, True, True], [False, False, True]])
    with (
        pytest.raises(fs.ParameterError, match=r"2 weights of 'weight'.*prune\(\)"),
        keep_pruned(LINEAR, {"weight": mask}),
    ):
        pass


# Would catch: masks() and prune() that don't understand each other, and integers set to zero.
def test_masks_of_a_fisher_prune_its_model():
    case = models.case("gpt2")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    masks = fs.masks(fisher, 0.4, model=case.model, method="obd")
    counts = sparsity(prune(case.model, masks))
    total = sum(m.numel() for m in masks.values())
    assert counts.zeros == round(0.4 * total)
    assert counts.to_dict()["zeros"] == counts.zeros
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(fs.ParameterError, match="'weight' holds integers"):
        prune(model, {"weight": KEEP})
