"""Task interaction under one configuration."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from oracles import models, rows

NAMES = ["mlp", "gpt2", "llama-tied"]


def halves(name):
    case = models.case(name)
    return rows.examples(case.rows[:3]), rows.examples(case.rows[3:])


# Catches: a method with rules of its own, settings that don't reach the function, and (tensorscope
# 1.2.5) a model left in eval mode.
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_the_functions(name):
    case, (a, b) = models.fresh(name), halves(name)
    case.model.train()
    metrics = fs.ModularityMetrics(config=fs.FisherConfig(seed=3, draws=2))
    found = metrics.compute_fisher_weighted_damage(case.model, a, b, "l1", 0.01)
    assert case.model.training
    assert all(p.grad is None for p in case.model.parameters())
    expected = fs.step_damage(case.model, a, b, kind="l1", learning_rate=0.01, seed=3, draws=2)
    assert found.to_dict() == expected.to_dict()


# Catches (tensorscope fact 7): "direct" that answers 0.0, or from a stale moving average.
def test_what_is_stored_matters_only_when_asked_for():
    case, (a, b) = models.case("gpt2"), halves("gpt2")
    fresh, used = fs.ModularityMetrics(), fs.ModularityMetrics()
    used.update_fisher_ema(case.model, b, "a")
    one, two = (m.compute_fisher_weighted_damage(case.model, a, b) for m in (fresh, used))
    assert one.index.index == two.index.index > 0
    stored = used.compute_fisher_weighted_damage(case.model, a, b, task_A="a")
    expected = fs.damage_index(used.store["a"], fs.mean_gradient(case.model, b)).index
    assert stored.index.index == pytest.approx(expected, rel=1e-6)
    with pytest.raises(fs.TaskError, match="'math'.*known: 'a'"):
        used.compute_fisher_weighted_damage(case.model, a, b, task_A="math")


# Catches (tensorscope 1.0): layer 1 that also stands for layers 10 and 11.
def test_a_prefix_restricts_what_moves():
    case, (a, b) = models.case("llama-tied"), halves("llama-tied")
    metrics = fs.ModularityMetrics()
    found = metrics.compute_fisher_weighted_damage(case.model, a, b, layers_prefix="layers.1")
    frame = found.to_frame()
    names = frame["name"][frame["level"] == "tensor"]
    expected = [n for n, _ in case.model.named_parameters() if ".layers.1." in n]
    assert list(names) == expected
    with pytest.raises(fs.ParameterError, match="layers_prefix='layers.9'"):
        metrics.compute_fisher_weighted_damage(case.model, a, b, layers_prefix="layers.9")


# Catches (tensorscope 1.2.6): names that are wired in, and a winner of 0 against 0.
def test_asymmetry_is_the_functions():
    case = models.case("mlp")
    torch.manual_seed(0)
    a, b = ((torch.randn(9, 5), torch.randint(4, (9,))) for _ in range(2))
    found = fs.ModularityMetrics().compute_fisher_damage_with_asymmetry(
        case.model, a, b, learning_rate=0.1, names=("math", "prose")
    )
    expected = fs.asymmetry(case.model, a, b, learning_rate=0.1, names=("math", "prose"))
    assert found.to_dict() == expected.to_dict()
    assert found.more_fragile in {"math", "prose", None}


def test_the_other_name():
    assert fs.ExtendedModularityMetrics is fs.ModularityMetrics
