"""Whoever takes scores of an fp16 model bears it when they overflow at the first scale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine import formats
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import prepare
from fisherscope.studies.interference.heads import head_damage
from oracles import models, rows
from oracles.rows import Row

# As in test_mixed.py.
FP16 = 0.01


def loud() -> tuple[nn.Module, nn.Module, list[Row]]:
    """A network in fp16, the same in fp32, and data: only the last rows overflow.

    The examples that rules are verified on are the first two of each task, of which the model is
    sure.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)).half()
    with torch.no_grad():
        for layer in (model[1], model[2]):
            layer.weight.mul_(8)
        data = rows.points(12, (5,), classes=4)
        twin = copy.deepcopy(model).float()
        labelled = []
        for n, row in enumerate(data):
            x = row.inputs["0"].half() * (1 + (n % 6 < 2))
            logits = twin(x.float()[None])[0]
            label = logits.argmax() if n % 6 < 2 else logits.argmin()
            labelled.append(Row(row.id, {"0": x}, label.reshape(row.labels.shape)))
    return model, twin, labelled


def full(data: list[Row]) -> list[fs.Example]:
    return rows.examples([Row(r.id, {"0": r.inputs["0"].float()}, r.labels) for r in data])


def delta(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        n: 1e-3 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()
    }


def _columns(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    return frame[names].to_numpy(dtype=float)


def _joined(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([t.flatten().numpy() for t in tensors.values()])[:, None]


def _damage(model: nn.Module, data: list[fs.Example]) -> np.ndarray:
    found = fs.damage(model, data, delta(model), fisher_type="empirical", measure=False)
    return _columns(found.table, ["first", "second"])


def _conflict(model: nn.Module, data: list[fs.Example]) -> np.ndarray:
    found = fs.conflict(model, {"a": data[:6], "b": data[6:]}, progress=False)
    return _columns(found.to_frame().query("metric == 'plain'"), ["inner"])


def _index(model: nn.Module, data: list[fs.Example]) -> np.ndarray:
    options = {"fisher_type": "empirical", "learning_rate": 1e-6, "measure": False}
    found = fs.step_damage(model, data, data, **options)
    return _columns(found.to_frame().query("level == 'all'"), ["index", "index_high", "first"])


def _uncertainty(model: nn.Module, data: list[fs.Example]) -> np.ndarray:
    fisher = fs.estimate(model, data, progress=False)
    return _columns(fs.uncertainty(model, fisher, data, prior_precision=1.0).to_frame(), ["value"])


USERS: dict[str, Callable[[nn.Module, list[fs.Example]], np.ndarray]] = {
    "estimate": lambda m, d: fs.estimate(m, d, progress=False).ledger.squares,
    "mean_gradient": lambda m, d: _joined(fs.mean_gradient(m, d)),
    "damage": _damage,
    "conflict": _conflict,
    "step_damage": _index,
    "operator": lambda m, d: _joined(fs.operator(m, d).matvec(delta(m))),
    "uncertainty": _uncertainty,
}


# Planted: no second try (all but the estimate raise); the summed gradient not looked at (NaN).
@pytest.mark.parametrize("user", list(USERS))
def test_an_overflow_lowers_the_scale(monkeypatch, user):
    model, twin, data = loud()
    scales = []
    real = Sweep.__enter__

    def entering(self: Sweep) -> Sweep:
        scales.append(self.coverage.scale)
        return real(self)

    monkeypatch.setattr(Sweep, "__enter__", entering)
    found = USERS[user](model, rows.examples(data))
    assert formats.LARGEST_SCALE in scales
    assert user == "estimate" or min(filter(None, scales)) < formats.LARGEST_SCALE
    expected = USERS[user](twin, full(data))
    errors = np.linalg.norm(found - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert (errors < FP16).all()


# Planted: no check in head_damage(), whose parts of NaN then went into the table.
def test_heads_of_a_model_that_overflows():
    case = models.case("llama-untied")
    model = copy.deepcopy(case.model).half()
    prepared = prepare(model, rows.examples(case.rows), fs.FisherConfig(fisher_type="mc"))
    high = replace(prepared, coverage=replace(prepared.coverage, scale=2.0**24))
    moves = {"a step": delta(model)}
    found, expected = (head_damage(p, moves)[["first", "second"]] for p in (high, prepared))
    np.testing.assert_allclose(found, expected, rtol=FP16, atol=1e-9)


# Planted: every scale tried for an example whose loss itself is not a number.
@pytest.mark.parametrize("user", ["mean_gradient", "damage", "operator"])
def test_what_no_scale_mends_is_named_at_once(monkeypatch, user):
    model, _, data = loud()
    data[-1].inputs["0"][:] = torch.nan
    tried = set()
    real = Sweep.__enter__
    monkeypatch.setattr(
        Sweep, "__enter__", lambda self: tried.add(self.coverage.scale) or real(self)
    )
    with pytest.raises(fs.NonFiniteError, match=f"example {data[-1].id!r}.* is not finite.*bf16"):
        USERS[user](model, rows.examples(data))
    assert tried == {formats.LARGEST_SCALE}


# Would catch: infinities in a product that can't be scaled, without a word.
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_second_derivatives_name_the_fix(curvature):
    model, _, data = loud()
    product = fs.operator(model, rows.examples(data), curvature=curvature)
    with pytest.raises(fs.NonFiniteError, match="use bf16 or fp32 weights, or curvature='fisher'"):
        product.matvec({name: 3e6 * d for name, d in delta(model).items()})
