from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

import checkpoints
from fisherscope import estimate
from fisherscope.analysis.descent import descent_step
from fisherscope.data import halves, read_jsonl
from fisherscope.defaults import FisherConfig
from fisherscope.metrics.damage_matrix import damage_matrix
from fisherscope.metrics.losses import task_loss
from fisherscope.metrics.run_config import DamageConfig
from fisherscope.preparation import prepare


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    model = LlamaForCausalLM.from_pretrained(checkpoints.llama(folder / "model"))
    tokenizer = checkpoints.tokenizer()
    tasks = {
        "prose": read_jsonl(checkpoints.prose(folder / "prose.jsonl", 12), tokenizer),
        "sums": read_jsonl(checkpoints.sums(folder / "sums.jsonl", 12), tokenizer),
    }
    fishers = {name: estimate(model, rows, progress=False) for name, rows in tasks.items()}
    return model, tasks, fishers


def matrix(room, **damage):
    model, tasks, fishers = room
    prepared = {name: prepare(model, rows, FisherConfig()) for name, rows in tasks.items()}
    found, damages = damage_matrix(prepared, fishers, DamageConfig(**damage), progress=False)
    assert len(found["cells"]) == sum(len(d.table) for d in damages.values())
    return {(cell["on"], cell["by"]): cell for cell in found["cells"]}


def test_prediction_meets_measurement_for_a_short_step(room):
    # Would catch tasks swapped between step and effect, a wrong sign, sum for mean, or ½.
    before = {name: p.detach().clone() for name, p in room[0].named_parameters()}
    cells = matrix(room, fraction=0.01)
    assert set(cells) == {(a, b) for a in ("prose", "sums") for b in ("prose", "sums")}
    for cell in cells.values():
        assert cell["predicted"] == pytest.approx(cell["first"] + cell["second"])
        assert cell["measured"] == pytest.approx(cell["predicted"], rel=0.2, abs=2e-4)
        assert cell["predicted_low"] <= cell["predicted"] <= cell["predicted_high"]
    for name in ("prose", "sums"):
        assert cells[name, name]["measured"] < 0
    assert all(torch.equal(p, before[name]) for name, p in room[0].named_parameters())


def test_the_effect_is_looked_at_on_other_examples(room):
    # Would catch a step judged on the examples that it was made from, or measured elsewhere.
    model, tasks, _ = room
    moving, _ = halves(tasks["sums"])
    _, watched = halves(tasks["prose"])
    moved = copy.deepcopy(model)
    step = descent_step(model, moving, fraction=0.5)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += step[name]
    after, before = (prepare(one, watched, FisherConfig()) for one in (moved, model))
    change = task_loss(after).value - task_loss(before).value
    cell = matrix(room, fraction=0.5)["prose", "sums"]
    assert cell["measured"] == pytest.approx(change, abs=1e-5)
    assert cell["n"] == len(watched) == 6
    assert cell["step_norm"] == pytest.approx(
        float(torch.cat([part.flatten() for part in step.values()]).norm()), rel=1e-5
    )


def test_the_stored_fisher_stands_alone(room):
    # Would catch the first order counted into what the stored Fisher says.
    model, tasks, fishers = room
    cells = matrix(room, fraction=0.01)
    step = descent_step(model, halves(tasks["sums"])[0], fraction=0.01)
    fisher = fishers["prose"]
    alone = 0.5 * fisher.quadratic(step) * fisher.n_examples / fisher.n_tokens
    assert cells["prose", "sums"]["diagonal"] == pytest.approx(alone, rel=1e-4)


def test_it_can_be_left_out(room):
    # Would catch a long computation that was switched off, or an absent entry.
    model, tasks, fishers = room
    assert matrix(room, enabled=False) == {}
    cells = matrix(room, measure=False, max_examples=3)
    assert {cell["n"] for cell in cells.values()} == {3}
    assert all(cell["measured"] != cell["measured"] for cell in cells.values())
