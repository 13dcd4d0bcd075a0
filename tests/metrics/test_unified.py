"""Every question of the classes, asked of one store."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fisherscope import (
    BombshellMetrics,
    FisherConfig,
    ModularityMetrics,
    UnifiedModelAnalyzer,
    preparation,
)
from fisherscope.errors import ParameterError
from fisherscope.metrics import DamageConfig


@pytest.fixture(scope="module")
def room():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs = torch.randn(2, 20, 4)
    tasks = {
        "first": (inputs[0], torch.arange(20) % 3),
        "second": (inputs[1], (inputs[1, :, 0] > 0).long()),
    }
    return model, tasks


def test_every_method_answers_from_the_analyzers_own_store(room):
    # Would catch a class with a store or settings of its own, or answers that are not theirs.
    model, tasks = room
    config = FisherConfig(seed=3)
    analyzer = UnifiedModelAnalyzer(config=config)
    assert analyzer.bombshell.store is analyzer.modularity.store is analyzer.store
    assert analyzer.bombshell.config is analyzer.modularity.config is config
    found = analyzer.analyze(model, tasks, progress=False, damage=DamageConfig(pair_examples=12))
    results = found.models["model"].results

    bombshell = BombshellMetrics(analyzer.store, config)
    top = bombshell.get_top_fisher_directions("second", k=20)
    rows = [row for row in results["top"] if row["task"] == "second"]
    assert [row["value"] for row in rows] == top.to_frame()["value"].tolist()
    sure = bombshell.estimate_fisher_uncertainty(model, tasks["first"], "first")
    rows = [row for row in results["uncertainty"] if row["task"] == "first"]
    assert len(rows) == len(sure.quality)
    assert [row["value"] for row in rows] == pytest.approx(sure.quality["value"].tolist())

    first, second = (tuple(part[:12] for part in tasks[name]) for name in tasks)
    pair = ModularityMetrics(analyzer.store, config).compute_fisher_damage_with_asymmetry(
        model, first, second, measure=True, names=("first", "second")
    )
    (row,) = (row for row in results["asymmetry"] if row["quantity"] == "measured")
    for key in ("a", "b", "difference_low", "difference_high"):
        assert row[key] == pytest.approx(pair.row("measured")[key], rel=1e-4)
    assert row["outcome"] == pair.row("measured")["outcome"]


def test_what_is_not_asked_for_is_not_computed(room):
    # Would catch passes over the data that a user has switched off.
    model, tasks = room
    found = UnifiedModelAnalyzer().analyze(
        {"one": model, "two": copy.deepcopy(model)},
        tasks,
        progress=False,
        damage=DamageConfig(enabled=False),
    )
    for one in found.models.values():
        assert one.results["asymmetry"] == []
        assert one.damages == {}
    assert found.comparison is not None
    assert not found.comparison.table["quantity"].str.startswith("damage").any()


def test_losses_and_damage_share_what_was_verified(room, monkeypatch):
    # Would catch: rules that are verified again for each step and for each task it is taken for.
    model, tasks = room
    calls = []
    real = preparation.cover
    monkeypatch.setattr(preparation, "cover", lambda *x: calls.append(x) or real(*x))
    needed = []
    for enabled in (False, True):
        calls.clear()
        UnifiedModelAnalyzer().analyze(
            model, tasks, progress=False, damage=DamageConfig(enabled=enabled)
        )
        needed.append(len(calls))
    # A task each for the estimate, for losses, and for uncertainty.
    assert needed == [3 * len(tasks)] * 2


@pytest.mark.parametrize("fraction", [0.0, -0.5])
def test_a_step_uphill_is_refused(room, fraction):
    # Would catch: damage of a step that the task itself would never take.
    model, tasks = room
    with pytest.raises(ParameterError, match="fraction"):
        UnifiedModelAnalyzer().analyze(
            model, tasks, damage=DamageConfig(fraction=fraction), progress=False
        )


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0])
def test_a_sparsity_that_prunes_everything_is_refused_at_once(room, sparsity):
    # Would catch: an analysis that estimates everything and then leaves its overlaps out.
    model, tasks = room
    analyzer = UnifiedModelAnalyzer()
    with pytest.raises(ParameterError, match=f"sparsity={sparsity}"):
        analyzer.analyze(model, tasks, sparsity=sparsity, progress=False)
    assert not analyzer.store
