from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pytest
import yaml

from checkpoints import contents
from fisherscope.metrics import estimating

VOLATILE = {"created", "run"}


def numbers(out):
    """What must come out the same again: everything but dates, times and places."""
    results = json.loads((out / "results.json").read_text())
    for task in results["tasks"]:
        task["seconds"] = None
    results["model"]["source"] = None
    return {key: value for key, value in results.items() if key not in VOLATILE}


def test_a_run_leaves_what_it_promises(finished):
    # Would catch a missing file, a leftover temporary one, or an unreadable one.
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "checksums.json", "config.yaml", "results.json", "report.html", "tables", "fisher",
    }  # fmt: skip
    assert {p.name for p in (finished / "fisher").iterdir()} == {"prose", "sums"}
    tables = {p.stem: pd.read_parquet(p) for p in (finished / "tables").iterdir()}
    assert {"tasks", "importance", "concentration", "similarity", "overlap", "damage"} <= set(
        tables
    )
    assert set(tables["importance"]["task"]) == {"prose", "sums"}
    assert "prose" in (finished / "report.html").read_text()


def test_the_results_say_what_they_are(finished):
    # Would catch a field of the format that is missing or of another shape.
    results = json.loads((finished / "results.json").read_text())
    assert results["format"] == 1
    assert results["model"]["class"] == "LlamaForCausalLM"
    assert results["model"]["likelihood"] == "causal-lm"
    assert (
        sum(c["tensors"] for c in results["model"]["coverage"].values())
        == (results["model"]["n_tensors"])
    )
    prose, sums = results["tasks"]
    assert (prose["n_examples"], sums["n_examples"]) == (8, 8)
    assert 3 < prose["loss"] < 6  # log 64 = 4.16 for a random model
    assert 0 < prose["loss_se"] < 1
    shares = [row["share"] for row in results["importance"]["prose"]]
    assert sum(shares) == pytest.approx(1)
    total = sum(row["mean"] * row["n_parameters"] for row in results["importance"]["prose"])
    assert total == pytest.approx(prose["trace"])
    assert {row["metric"] for row in results["similarity"]} >= {"cosine", "spearman"}
    assert {(c["on"], c["by"]) for c in results["damage"]["cells"]} == {
        (on, by) for on in ("prose", "sums") for by in ("prose", "sums")
    }
    assert all(c["measured"] is not None for c in results["damage"]["cells"])
    rules = {alert["rule"] for alert in results["alerts"]}
    assert "few-examples" in rules


def test_the_written_config_replays_the_run(run, finished, tmp_path, monkeypatch):
    # Would catch a setting that is not written down, a relative path, or an unseeded number.
    config = tmp_path / "elsewhere.yaml"
    shutil.copy(finished / "config.yaml", config)
    monkeypatch.chdir(tmp_path)
    run("analyze", "--config", config, "--out", "again", "-q")
    assert numbers(tmp_path / "again") == numbers(finished)


def test_the_config_holds_absolute_paths(run, model, tasks, tmp_path, monkeypatch):
    # Would catch a config that means something else in another folder.
    monkeypatch.chdir(model.parent)
    prose = os.path.relpath(tasks["prose"])
    out = os.path.relpath(tmp_path / "run")
    run("analyze", "--model", model.name, "--task", f"prose={prose}", "--out", out, "-q",
        "--no-damage")  # fmt: skip
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"] == str(model)
    assert os.path.realpath(config["tasks"]["prose"]) == os.path.realpath(tasks["prose"])
    for path in (config["model"], config["out"], *config["tasks"].values()):
        assert os.path.isabs(path)
        assert ".." not in path.split(os.sep)


def test_running_again_estimates_nothing(run, finished, tmp_path, monkeypatch):
    # Would catch work done twice, and numbers that depend on having been loaded.
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)

    def never(*_, **__):
        raise AssertionError("estimated again")

    monkeypatch.setattr(estimating, "estimate", never)
    run("analyze", "--config", copy / "config.yaml", "--out", copy, "-q")
    assert numbers(copy) == numbers(finished)


def test_an_interrupted_run_goes_on_where_it_stopped(run, finished, tmp_path, monkeypatch):
    # Would catch a finished task that is lost or estimated again, or a half-written result.
    out = tmp_path / "run"
    config = ["analyze", "--config", finished / "config.yaml", "--out", out]
    estimate = estimating.estimate
    calls = []

    def interrupted(model, data, **options):
        calls.append(len(data))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return estimate(model, data, **options)

    monkeypatch.setattr(estimating, "estimate", interrupted)
    result = run(*config, code=130)
    assert "same command goes on" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "fisher"]
    first = contents(out / "fisher")
    assert {name.split("/")[0] for name in first} == {"prose"}
    run(*config, "-q")
    assert len(calls) == 3
    assert {k: v for k, v in contents(out / "fisher").items() if k.startswith("prose/")} == first
    assert numbers(out) == numbers(finished)


def test_a_task_can_be_added_later(run, finished, tasks, tmp_path, monkeypatch):
    # Would catch a run that refuses, or starts all over, because one more task is asked for.
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    estimate, calls = estimating.estimate, []
    monkeypatch.setattr(
        estimating, "estimate", lambda *a, **k: calls.append(1) or estimate(*a, **k)
    )
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["tasks"]["more"] = str(tasks["prose"])
    config["out"] = str(copy)
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(config))
    run("analyze", "--config", tmp_path / "more.yaml", "-q")
    assert len(calls) == 1
    names = [task["name"] for task in json.loads((copy / "results.json").read_text())["tasks"]]
    assert sorted(names) == ["more", "prose", "sums"]
    tables = {p.name for p in (copy / "fisher").iterdir()}
    assert tables == {"more", "prose", "sums"}


def test_the_plan_comes_before_the_work(run, model, tasks, tmp_path, monkeypatch):
    # Would catch a plan that is printed after the estimate, or not at all.
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimating, "estimate", stop)
    result = run("analyze", "--model", model, "--task", f"prose={tasks['prose']}", "--out",
                 tmp_path / "run", code=130)  # fmt: skip
    assert "prose" in result.stdout
    assert "linear" in result.stdout.lower()


def test_several_models_side_by_side(run, model, other_model, tasks, tmp_path):
    # Would catch models written into one folder, a comparison that no file holds, or a run
    # that cannot be replayed.
    out = tmp_path / "run"
    result = run("analyze", "--model", f"one={model}", "--model", f"two={other_model}", "--task",
                 f"prose={tasks['prose']}", "--out", out, "--no-damage")  # fmt: skip
    assert "On prose, the loss of two" in result.stdout
    assert {p.name for p in out.iterdir()} == {
        "checksums.json", "config.yaml", "results.json", "report.html", "tables", "one", "two",
    }  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert results["reference"] == "one"
    assert {row["model"] for row in results["table"]} == {"two"}
    assert {p.stem for p in (out / "tables").iterdir()} >= {"table", "modules", "similarity"}
    alone = tmp_path / "alone"
    run("analyze", "--config", out / "two" / "config.yaml", "--out", alone, "-q")
    assert numbers(alone) == numbers(out / "two")
    run("analyze", "--config", out / "config.yaml", "-q")
    again = json.loads((out / "results.json").read_text())
    assert again["table"] == results["table"]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("one={model}", "{model}"), "is not NAME=PATH_OR_HUB_ID"),
        (("one={model}", "one={model}"), "'one' is given twice"),
        (("one={model}", "One={model}"), "differ in nothing but case"),
        (("one={model}", "tables={model}"), "'tables' is that of something else"),
        (("one={model}", "a/b={model}"), "path separator"),
        (("one={model}", "two=./nowhere"), "nowhere"),
    ],
)
def test_unusable_model_names_leave_nothing(run, model, tasks, tmp_path, models, said):
    # Would catch a model that hides another, or the first model's long work before the second
    # one turns out to be missing.
    given = [part for m in models for part in ("--model", m.format(model=model))]
    out = tmp_path / "run"
    result = run("analyze", *given, "--task", f"prose={tasks['prose']}", "--out", out, code=None)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not out.exists()
