from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.studies.displacement import displacement, norm
from oracles import models


def test_only_what_has_moved():
    base = models.gpt2()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.transformer.wte.weight.add_(0.5)
    move = displacement(base, tuned)
    # Catches a tied head that moves twice, and tensors of zeros kept in memory.
    assert list(move) == ["transformer.wte.weight"]
    assert norm(move) == pytest.approx(0.5 * base.transformer.wte.weight.numel() ** 0.5, rel=1e-4)
    assert displacement(base, copy.deepcopy(base)) == {}


def test_half_precision_moves_in_full():
    # Catches a difference taken in bf16, which loses most of a small step.
    base, tuned = (nn.Linear(2, 2, bias=False).bfloat16() for _ in range(2))
    with torch.no_grad():
        base.weight.fill_(1.0)
        tuned.weight.fill_(1.0078125)
    move = displacement(base, tuned)["weight"]
    assert move.dtype == torch.float32 and (move == 0.0078125).all()


def test_adapters_are_merged_into_the_base_weights():
    # Catches a displacement of A and B, which the base model does not have.
    base = models.llama()
    adapted = models.lora(copy.deepcopy(base))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    move = displacement(base, adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    for name, p in base.named_parameters():
        difference = dict(merged.named_parameters())[name] - p
        torch.testing.assert_close(move.get(name, torch.zeros_like(p)), difference.detach())
    assert move
    assert all(torch.equal(before[n], p) for n, p in adapted.named_parameters())


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2)), "'weight' exists in base only"),
        (lambda: nn.Linear(3, 4), r"'weight' has shape \(4, 3\)"),
    ],
)
def test_unlike_architectures_are_named(tuned, said):
    with pytest.raises(ParameterError, match=said):
        displacement(nn.Linear(3, 2), tuned(), name="step-100")


def test_a_diverged_checkpoint_is_named():
    tuned = nn.Linear(3, 2)
    with torch.no_grad():
        tuned.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="'weight' of step-7"):
        displacement(nn.Linear(3, 2), tuned, name="step-7")
