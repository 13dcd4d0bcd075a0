"""Study commands from files to report."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from fisherscope.cli import main
from fisherscope.studies.brittleness import running


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def given(model, tasks):
    named = [f"--task={name}={path}" for name, path in tasks.items()]
    return model, named


def test_interfere_leaves_numbers_tables_and_report(given, tmp_path):
    # Catches options that do not arrive, and a page that cannot read its own results.
    model, tasks = given
    out = tmp_path / "run"
    done = invoke(
        "interfere", "--model", model, *tasks, "--out", out, "--scale", 0.1, "--scale", 1, "-q",
        "--no-conflicts",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "interference" and results["study"]["conflict"] is None
    cells = pd.read_parquet(out / "tables" / "cells.parquet")
    assert set(cells["scale"]) == {0.1, 1.0}
    assert 'id="prediction"' in (out / "report.html").read_text()
    (out / "report.html").unlink()
    again = invoke("report", out)
    assert again.exit_code == 0 and (out / "report.html").exists()


def test_forget_compares_two_checkpoints(given, tmp_path):
    model, tasks = given
    out = tmp_path / "run"
    done = invoke("forget", "--base", model, "--tuned", model, *tasks, "--out", out)
    assert done.exit_code == 0, done.output
    assert "Nothing has moved" in done.output
    assert set(json.loads((out / "results.json").read_text())["models"]) == {"base", "tuned"}


def test_bad_input_is_said_in_a_line(given, tmp_path):
    model, tasks = given
    one = invoke("interfere", "--model", model, tasks[0], "--out", tmp_path / "a")
    assert one.exit_code != 0 and "at least two" in one.output
    assert not (tmp_path / "a").exists()
    both = invoke(
        "forget", "--base", model, "--tuned", model, "--model", model, *tasks, "--out", tmp_path
    )
    assert both.exit_code != 0 and "not --model" in both.output
    none = invoke("forget", "--base", model, "--tuned", tmp_path / "no", *tasks, "--out", "x")
    assert none.exit_code != 0 and "no" in none.output


def test_brittle_compares_two_models_and_goes_on(model, other_model, tasks, tmp_path, monkeypatch):
    # Catches rows of the new task that are watched as an old one, and runs that are made again.
    out = tmp_path / "run"
    words = [
        "brittle", "--compare", f"base={model}", "--compare", f"instruct={other_model}",
        "--learn", f"sums={tasks['sums']}", "--task", f"prose={tasks['prose']}", "--out", out,
        "--rate", 0.01, "--steps", 3, "--seeds", 3, "--looks", 1,
    ]  # fmt: skip
    real, calls = running.follow, []

    def stopping(*given, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(running, "follow", stopping)
    assert invoke(*words).exit_code != 0
    assert not (out / "results.json").exists()
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    kept = (out / ".runs" / running.FILE).read_text().splitlines()[1:]
    assert len(calls) == 5 + len(kept) - 4 - 2  # two starts
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "brittleness" and results["settings"]["learn"] == "sums"
    assert {row["task"] for row in results["study"]["ratios"]} == {"all", "prose"}
    assert results["findings"][0] in done.output
    assert len(pd.read_parquet(out / "tables" / "ratios.parquet")) == 6
    assert 'id="breaking"' in (out / "report.html").read_text()


def test_brittle_refuses_in_a_line(model, tasks, tmp_path):
    base, learn = f"base={model}", f"sums={tasks['sums']}"
    old = f"prose={tasks['prose']}"
    out = tmp_path / "a"
    for words, said in (
        (("--compare", base, "--learn", learn, "--task", old), "at least two"),
        (("--compare", base, "--compare", base, "--learn", learn, "--task", old), "given twice"),
        (("--compare", base, "--compare", f"b={model}", "--learn", learn), "no --task"),
        (
            ("--compare", base, "--compare", f"b={model}", "--learn", "x", "--task", old),
            "NAME=FILE",
        ),
        (
            ("--compare", base, "--compare", f"b={model}", "--learn", learn, "--task", learn),
            "is the new task",
        ),
        (("--model", model, "--compare", base, "--learn", learn), "not --model"),
    ):
        done = invoke("brittle", *words, "--out", out)
        assert done.exit_code != 0 and said in done.output, done.output
    assert not out.exists()
