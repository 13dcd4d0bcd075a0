"""Bad input is found out, and named, before anything is trained."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope.data import content_id
from fisherscope.defaults import FisherConfig
from fisherscope.studies.remedies import study
from fisherscope.studies.remedies.arms import STRENGTHS
from fisherscope.studies.remedies.interventions import Interventions, even
from fisherscope.studies.remedies.setting import settle
from fisherscope.studies.tuning import Schedule
from oracles import models, rows
from studies.remedies.builders import SCHEDULE, Linear, fresh, tasks

MODEL = fresh(Linear)
OLD, NEW = tasks(MODEL, 2, rows=12)
OTHER, _ = tasks(MODEL, 2, rows=9)


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(study, "follow", never)


def run(learn=NEW, old=None, **options):
    given = {"schedule": SCHEDULE, "likelihood": "regression", "progress": False, **options}
    return fs.remedies(MODEL, learn, {"old": OLD} if old is None else old, **given)


def few(data, start, stop):
    return tuple(part[start:stop] for part in data)


BAD = {
    "no tasks": ({"old": {}}, fs.TaskError, "tasks is empty"),
    "new among old": ({"old": {"new": OLD}}, fs.TaskError, "another name="),
    "mean": ({"old": {"mean": OLD}}, fs.TaskError, "row of their mean"),
    "unknown arm": ({"arms": ["ewc", "l2"]}, fs.ParameterError, "choose among 'ewc', 'freeze'"),
    "no arms": ({"arms": []}, fs.ParameterError, "choose among"),
    "freeze": ({"freeze_share": 1.0}, fs.ParameterError, "freeze_share=1.0 must be"),
    "mask": ({"mask_share": 0}, fs.ParameterError, "mask_share=0 must be"),
    "lora": ({"lora_share": 1.5}, fs.ParameterError, "lora_share=1.5 must be"),
    "strength": ({"strength": -1.0}, fs.ParameterError, "strength=-1.0 must be"),
    "level": ({"levels": [1.2]}, fs.ParameterError, "levels=1.2 must be"),
    "scope": ({"scope": "layer"}, fs.ParameterError, "scope='layer' is unknown"),
    "seeds": ({"seeds": [1, 1]}, fs.ParameterError, "different seeds"),
    "schedule": ({"schedule": 30}, fs.ParameterError, "schedule is a int"),
    "steps": ({"schedule": Schedule(steps=0, peak=0.1)}, fs.ParameterError, "schedule.steps=0"),
    "every": ({"every": 0}, fs.ParameterError, "every=0 must be"),
    "few new": ({"learn": few(NEW, 0, 3)}, fs.DataError, "learn has 3 examples.*held_out="),
    "few old": ({"old": {"old": few(OLD, 0, 3)}}, fs.DataError, "task 'old' has 3.*protect="),
    "one row": ({"held_out": few(OTHER, 0, 1)}, fs.DataError, "held_out has one example"),
    "seen": ({"held_out": few(NEW, 4, 8)}, fs.DataError, "held_out shares 4 .* with learn"),
    "protected": ({"protect": {"old": few(OLD, 0, 2)}}, fs.DataError, "shares 2 .* with protect"),
    "for others": ({"protect": {"x": OTHER}}, fs.TaskError, r"protect is for \['x'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        run(**options)


def test_fishers_must_be_of_this_model_and_of_other_rows():
    # Catches a Fisher at other weights, whose coordinates mean nothing here, and losses measured on
    # the rows that chose what to protect.
    other = fresh(Linear)
    with torch.no_grad():
        other.layer.weight.add_(1)
    foreign = fs.estimate(other, OTHER, likelihood="regression", progress=False)
    with pytest.raises(fs.IdentityError, match=r"fishers\['old'\].*other weights"):
        run(fishers={"old": foreign})
    apart = tuple(part + 0.5 for part in OTHER)
    store = fs.FisherStore()
    base = fs.FisherBase(store, fs.FisherConfig(likelihood="regression"))
    for seen in (MODEL, other):
        base.update_fisher_ema(seen, OTHER, "old")
    with pytest.raises(fs.IdentityError, match="followed along a run"):
        run(fishers={"old": store["old"]})
    same = fs.estimate(MODEL, OLD, likelihood="regression", progress=False)
    with pytest.raises(fs.IdentityError, match="the very rows"):
        run(fishers={"old": same}, protect={"old": apart})
    dense = fs.estimate(MODEL, OTHER, structure="dense", likelihood="regression", progress=False)
    with pytest.raises(fs.ParameterError, match="is a DenseFisher"):
        run(fishers={"old": dense})


def test_rows_without_supervised_tokens_are_named():
    case = models.fresh("gpt2")
    good = fs.examples(rows.examples(case.rows))
    mute = [
        fs.Example(f"m{i}", e.inputs, torch.full_like(e.labels, -100)) for i, e in enumerate(good)
    ]
    with pytest.raises(fs.DataError, match="learn: .*there is no supervised token"):
        fs.remedies(case.model, mute, {"old": good}, schedule=SCHEDULE, progress=False)


def test_unlabelled_rows_are_refused():
    # Catches placeholders that an estimate with drawn labels may use, trained on as if they were
    # the data's.
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    old = (torch.randn(8, 4), torch.randint(3, (8,)))
    options = {"schedule": SCHEDULE, "likelihood": "classification", "progress": False}
    with pytest.raises(fs.DataError, match="learn: "):
        fs.remedies(model, torch.randn(8, 4), {"old": old}, **options)


def test_a_frozen_model_is_refused():
    model = fresh(Linear).requires_grad_(False)
    with pytest.raises(fs.ParameterError, match="nothing would be trained"):
        fs.remedies(model, NEW, {"old": OLD}, schedule=SCHEDULE, likelihood="regression")


def settled(model, learn, old, **options):
    given = {
        "held_out": None, "protect": None, "fishers": None, "name": "new", "arms": ["freeze"],
        "strengths": STRENGTHS, "schedule": SCHEDULE, "seeds": [0], "batch_rows": 4, "every": 1,
        "levels": [0.5], "fisher_rows": 256, "config": FisherConfig(fisher_type="mc", unit="token"),
        **options,
    }  # fmt: skip
    return settle(model, learn, old, **given)


def test_no_row_serves_twice():
    # Catches Fishers of the measuring rows, and training on held-out ones.
    case = models.fresh("gpt2")
    data = fs.examples(rows.examples(case.rows))
    found = settled(case.model, data, {"old": data})
    groups = [found.learn.examples, found.watch["new"], found.protect["old"], found.watch["old"]]
    ids = [{content_id(row) for row in group} for group in groups]
    assert not ids[0] & ids[1] and not ids[2] & ids[3]
    assert ids[0] | ids[1] == ids[2] | ids[3] == {content_id(row) for row in data}


def test_the_even_fisher_has_the_same_trace():
    # Catches a null of another strength, and a trace that lies on weights that never move.
    case = models.fresh("gpt2")
    data = fs.examples(rows.examples(case.rows))
    fisher = fs.estimate(case.model, data, progress=False)
    names = list(fisher.sums)[2:]
    flat = even(fisher, names)
    part, spread = ({n: f.sums[n].double() for n in names} for f in (fisher, flat))
    assert sum(t.sum() for t in spread.values()) == pytest.approx(
        float(sum(t.sum() for t in part.values())), rel=1e-5
    )
    assert len({float(v) for t in spread.values() for v in (t.min(), t.max())}) == 1


def test_masks_name_every_tensor_and_tied_ones_once():
    # Catches a tensor that moves as a whole because no mask names it, and a tied weight under two
    # names, of which the second mask would undo the first.
    case = models.fresh("gpt2")
    data = fs.examples(rows.examples(case.rows))
    made = Interventions(settled(case.model, data, {"old": data}), progress=False)
    total = sum(p.numel() for p in case.model.parameters())
    for arm in ("freeze", "freeze_random", "mask", "mask_random"):
        found = made.make(arm, 0)
        assert list(found.trainable) == [n for n, _ in case.model.named_parameters()]
        share = 0.9 if arm.startswith("freeze") else 0.1
        assert found.n_trainable == round(share * total)
    sizes = [{n: int(m.sum()) for n, m in made.make(arm, 3).trainable.items()}
             for arm in ("mask", "mask_random")]  # fmt: skip
    assert sizes[0] == sizes[1]
