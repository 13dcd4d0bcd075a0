"""The study on problems whose right answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fisherscope as fs
from fisherscope.results import plain
from fisherscope.studies.remedies.study import FILE
from fisherscope.studies.tuning import Schedule
from studies.remedies.builders import SCHEDULE, Branches, Linear, fresh, tasks

OPTIONS = {"seeds": (0, 1, 2), "every": 2, "likelihood": "regression", "progress": False}


def rows(found, level, task="mean"):
    table = found.table
    chosen = table[(table["level"] == level) & (table["task"] == task)]
    return {row["arm"]: row for row in chosen.to_dict("records")}


@pytest.fixture(scope="module")
def planted():
    model = fresh(Linear)
    before = model.layer.weight.detach().clone()
    old, new = tasks(model, 2)
    state = torch.get_rng_state()
    # Draws hang on the last bit of the data, which processors round differently: with many of them
    # no processor chooses other weights.
    found = fs.remedies(
        model, new, {"old": old}, schedule=SCHEDULE, freeze_share=0.5, mask_share=0.5,
        strength=20.0, arms=["ewc", "freeze", "mask"], draws=32,
        **{**OPTIONS, "seeds": (0, 1, 2, 3, 4)},
    )  # fmt: skip
    assert torch.equal(model.layer.weight, before) and model.layer.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    return found


def test_remedies_protect_what_is_planted_and_their_nulls_do_not(planted):
    # The old task needs four of eight weights. Catches masks the wrong way round, Fishers of the
    # wrong task, a penalty on nothing, nulls that are the remedy, levels of another arm.
    assert planted.outcome == "ok"
    at, half = rows(planted, 0.75), rows(planted, 0.5)
    assert at["plain"]["increase"] > 0.1
    for arm in ("freeze", "mask"):
        assert at[arm]["increase"] == pytest.approx(0, abs=1e-9)
        assert half[f"{arm}_random"]["increase"] > 0.05
        assert half[arm]["to_null"] < -0.05
    assert at["ewc"]["increase"] < 0.1 * at["plain"]["increase"]
    assert half["ewc"]["to_null_verdict"] == "better"
    for arm in ("ewc", "freeze", "mask"):
        assert at[arm]["to_plain_verdict"] == "better"
        assert at[arm]["to_plain"] == pytest.approx(at[arm]["loss"] - at["plain"]["loss"])
    # L2 holds what the new task could use as fast as what the old one needs.
    assert at["l2"]["outcome"] == "never_reached" and at["l2"]["reached"] == 0
    assert "3 of 3 remedies keep old better than plain fine-tuning" in planted.findings()[0]


def test_half_the_weights_may_move(planted):
    arms = planted.arms.set_index("arm")
    assert arms.loc["plain", "trainable"] == 8
    assert set(arms.loc[["freeze", "freeze_random", "mask", "mask_random"], "trainable"]) == {4}
    # A mask of one byte and the held weight of four; Fisher and anchor.
    assert arms.loc["freeze", "bytes"] == 8 * 5 and arms.loc["ewc", "bytes"] == 8 * 8
    assert arms.loc["plain", "bytes"] == 0
    assert (planted.runs["modules"] == "").all()


def test_every_number_can_be_written(planted):
    text = json.dumps(plain(planted), allow_nan=False)
    assert json.loads(text)["settings"]["freeze_share"] == 0.5
    assert set(planted.curves["task"]) == {"old", "new"}
    assert planted.to_frame().equals(planted.table)
    assert len(planted.findings()) == 5


@pytest.fixture(scope="module")
def placed():
    pytest.importorskip("peft")
    model = fresh(Branches)
    old, new = tasks(model, 4)
    return fs.remedies(
        model, new, {"old": old}, schedule=SCHEDULE, arms=["lora"], lora_rank=1, lora_rate=1.0,
        levels=[0.5], **OPTIONS,
    )  # fmt: skip


def test_adapters_go_where_the_old_task_is_not(placed):
    # Catches a ranking from the wrong end, damage with the sign turned, cross terms of a step that
    # is not taken, and a null that draws the same layers.
    ranking = placed.modules
    assert ranking["module"].iloc[0] == "d" and ranking["chosen"].tolist() == [True] + 3 * [False]
    assert ranking["cost"].iloc[0] == pytest.approx(0, abs=1e-12)
    assert (ranking["cost"].iloc[1:] > 0).all() and (ranking["gain"] > 0).all()
    runs = placed.runs.set_index(["arm", "seed"])
    assert all(runs.loc[("lora", seed), "modules"] == "d" for seed in range(3))
    others = [runs.loc[("lora_random", seed), "modules"] for seed in range(3)]
    assert set(others) <= {"a", "b", "c"} and len(set(others)) > 1
    assert set(runs.loc["lora", "trainable"]) == set(runs.loc["lora_random", "trainable"]) == {5}
    at = rows(placed, 0.5)
    assert at["lora"]["increase"] == pytest.approx(0, abs=1e-9)
    assert at["lora"]["to_null"] < -0.01 and at["lora"]["to_plain_verdict"] == "better"


def test_without_peft_the_arm_is_skipped_with_its_reason(monkeypatch):
    # Catches an ImportError in the middle, and an arm that vanishes without a word.
    monkeypatch.setattr("fisherscope.studies.remedies.placement.find_spec", lambda name: None)
    model = fresh(Branches)
    old, new = tasks(model, 4, rows=40)
    found = fs.remedies(
        model, new, {"old": old}, schedule=SCHEDULE, arms=["lora"], **{**OPTIONS, "seeds": [0]}
    )
    arms = found.arms.set_index("arm")
    assert arms.loc["lora", "skipped"] == "peft is not installed; pip install peft"
    assert arms.loc["lora_random", "n_seeds"] == 0
    assert set(found.table["arm"]) == {"plain"} and found.modules.empty
    assert any("was not run: peft is not installed" in line for line in found.findings())
    assert found.findings()[0].startswith("No remedy was run")


def test_no_progress_is_an_outcome():
    # Catches levels between a start and itself, at which everything is reached at once.
    model = fresh(Linear)
    old, (x, _) = tasks(model, 2, rows=24)
    with torch.no_grad():
        solved = model(x)
    found = fs.remedies(model, (x, solved), {"old": old}, schedule=SCHEDULE, **OPTIONS)
    assert found.outcome == "no_progress" and found.table.empty
    assert set(found.runs["arm"]) == {"plain"} and set(found.progress["outcome"]) == {"no_progress"}
    assert "makes no progress on new" in found.findings()[0]
    json.dumps(plain(found), allow_nan=False)


def test_a_divergence_is_recorded_and_the_study_goes_on():
    # Catches a study that raises, and levels from losses of broken weights.
    model = fresh(Linear)
    old, new = tasks(model, 2, rows=24)
    found = fs.remedies(
        model, new, {"old": old}, arms=["ewc"], strength=3e38,
        schedule=Schedule(steps=4, peak=0.1, weight_decay=0.0, clip=float("inf")),
        **{**OPTIONS, "every": 1},
    )  # fmt: skip
    arms = found.arms.set_index("arm")
    assert arms.loc["plain", "diverged"] == 0
    assert arms.loc["ewc", "diverged"] == arms.loc["ewc", "n_seeds"] == 3
    assert any(line.startswith("EWC: 3 of 3 fine-tunings diverged") for line in found.findings())
    assert set(rows(found, 0.9)) == {"plain", "ewc", "l2"}


def test_finished_fine_tunings_are_kept(tmp_path, monkeypatch):
    # Catches runs that are done twice, and kept numbers that read back otherwise.
    model = fresh(Linear)
    old, new = tasks(model, 2, rows=24)

    def study(**options):
        return fs.remedies(
            model, new, {"old": old}, schedule=SCHEDULE, arms=["mask"], folder=tmp_path,
            **{**OPTIONS, "seeds": (0, 1), **options},
        )  # fmt: skip

    first = study()
    assert len((tmp_path / FILE).read_text().splitlines()) == 7

    def never(*arguments, **options):
        raise AssertionError("done again")

    monkeypatch.setattr("fisherscope.studies.remedies.study.follow", never)
    again = study()
    assert again.table.equals(first.table) and again.curves.equals(first.curves)
    with pytest.raises(fs.IdentityError, match="other settings"):
        study(mask_share=0.3)


def test_one_seed_has_no_interval():
    model = fresh(Linear)
    old, new = tasks(model, 2, rows=24)
    found = fs.remedies(
        model, new, {"old": old}, schedule=SCHEDULE, arms=["freeze"], freeze_share=0.5,
        **{**OPTIONS, "seeds": [4]},
    )  # fmt: skip
    row = rows(found, 0.5)["freeze"]
    assert row["to_plain_verdict"] == "too_few_seeds" and np.isnan(row["to_plain_low"])
    assert "too few seeds" in " ".join(found.findings())
