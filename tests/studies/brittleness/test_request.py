from __future__ import annotations

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.data import content_id
from fisherscope.defaults import FisherConfig
from fisherscope.studies.brittleness import running
from fisherscope.studies.brittleness.request import BrittlenessOptions, make_request

QUICK = {"steps": 4, "every": 2, "seeds": (1, 2, 3), "looks": 0, "progress": False}


def rows(count, seed=1):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))


def test_held_out_rows_are_split_off():
    # Catches rows that are learnt and measured on at once.
    models, options = {"a": net(), "b": net()}, BrittlenessOptions()
    request = make_request(models, rows(12), {"old": rows(4)}, None, FisherConfig(), options, None)
    learnt, kept = ({content_id(e) for e in part} for part in (request.learn, request.watch["new"]))
    assert len(learnt) == len(kept) == 6 and not learnt & kept


def test_the_last_step_is_always_looked_at():
    # Catches looks between two measurements, whose losses are not known.
    assert BrittlenessOptions(steps=10, every=4, looks=2).looked_at() == (4, 10)
    assert BrittlenessOptions(steps=10, every=4, looks=0).looked_at() == ()
    assert BrittlenessOptions(steps=2, every=1, looks=5).looked_at() == (1, 2)


def test_max_examples_is_about_what_is_watched():
    request = make_request(
        {"a": net(), "b": net()}, rows(12), {"old": rows(8)}, rows(8, 2),
        FisherConfig(max_examples=5), BrittlenessOptions(), None,
    )  # fmt: skip
    assert len(request.learn) == 12
    assert [len(part) for part in request.watch.values()] == [5, 5]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"models": {"a": net()}}, fs.ParameterError, "at least two"),
        (
            {"models": {"a": net(), "b": nn.Linear(2, 2)}},
            fs.ParameterError,
            "b is of another architecture than a",
        ),
        ({"tasks": {}}, fs.TaskError, "tasks is empty"),
        ({"tasks": {"new": rows(8)}}, fs.TaskError, "'new'"),
        ({"learn": (torch.zeros(1, 2), torch.zeros(1).long())}, fs.DataError, "held_out"),
        ({"held_out": "learn"}, fs.DataError, "held_out shares 24 of its 24"),
        ({"seeds": (1, 2)}, fs.ParameterError, "seeds"),
        ({"seeds": (1, 2, 2)}, fs.ParameterError, "seeds"),
        ({"seed": 3}, fs.ParameterError, "seed=3 is among"),
        ({"rates": ()}, fs.ParameterError, "rates"),
        ({"rates": (0.0,)}, fs.ParameterError, "rates"),
        ({"share": 1.5}, fs.ParameterError, "share"),
        ({"collapse": 0}, fs.ParameterError, "collapse"),
        ({"every": 0}, fs.ParameterError, "every"),
    ],
)
def test_bad_input_is_refused_before_any_run(monkeypatch, change, error, said):
    monkeypatch.setattr(running, "follow", lambda *a, **o: pytest.fail("it ran"))
    given = {"models": {"a": net(), "b": net()}, "learn": rows(24)}
    given |= {"tasks": {"old": rows(24)}, **QUICK, **change}
    if given.get("held_out") == "learn":
        given["held_out"] = given["learn"]
    with pytest.raises(error, match=said):
        fs.brittleness(given.pop("models"), given.pop("learn"), given.pop("tasks"), **given)


def test_rows_without_supervised_tokens_are_named():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip
    ids = torch.arange(24).reshape(4, 6) % 16
    fine = {"input_ids": ids, "labels": ids}
    mute = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    for learn, held_out, named in ((mute, fine, "learn"), (fine, mute, "held_out")):
        with pytest.raises(fs.DataError, match=f"{named}: .*no supervised token"):
            fs.brittleness(
                {"a": model, "b": model}, learn, {"old": fine}, held_out=held_out, **QUICK
            )
