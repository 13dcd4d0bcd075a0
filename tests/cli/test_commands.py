from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

import checkpoints
import fisherscope
from checkpoints import contents
from fisherscope.demo import DemoArtifacts


def test_help_lists_every_command(run):
    # Would catch a command that is not registered or cannot be imported.
    text = run("--help").stdout
    names = (
        *("analyze", "brittle", "compare", "demo", "estimate", "forget", "interfere", "ls"),
        *("percolate", "plan", "remedy", "report", "validate"),
    )
    for name in names:
        assert f"\n  {name} " in text
        assert "--traceback" in run(name, "--help").stdout


def test_the_version_is_the_packages(run):
    # Would catch a version that only an installed package has.
    assert run("--version").stdout.startswith("fisherscope, version ")


def test_an_unknown_command_is_refused(run):
    # Would catch an import error for a misspelt command.
    assert "No such command 'analyse'" in run("analyse", code=2).stderr


def test_plan_shows_rules_and_writes_nothing(run, model, tasks, tmp_path, monkeypatch):
    # Would catch a plan that estimates, or that leaves a folder.
    monkeypatch.chdir(tmp_path)
    text = run("plan", "--model", model, "--task", f"prose={tasks['prose']}").stdout
    assert "linear" in text
    assert "8 examples" in text
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_selected_by_every_form_in_text(run, model, tasks, tmp_path):
    # Would catch a form that the shell delivers but that only globs are made of.
    out = tmp_path / "store"
    arguments = ["estimate", "--model", model, "--out", out, "--max-examples", 4,
                 "--task", f"prose={tasks['prose']}"]  # fmt: skip
    text = run(*arguments, "--parameters", "re:q_proj(", code=2).stderr
    assert "'re:q_proj(' is not a regular expression" in text
    text = run(*arguments, "--parameters", "layers[7:9]", code=2).stderr
    assert "the layers of this model are 0 to 1" in text
    run(*arguments, "--parameters", "re:0.*[qk]_proj", "--parameters", "layers[-1]")
    names = fisherscope.FisherStore(out)["prose"].identity.parameters
    assert {n.split(".")[4] for n in names if ".0." in n} == {"q_proj", "k_proj"}
    assert all(".0." in n or ".1." in n for n in names) and any("mlp" in n for n in names)


def test_estimate_fills_a_store_that_python_reads(run, model, tasks, tmp_path):
    # Would catch options that do not arrive, or a store in another place.
    out = tmp_path / "store"
    arguments = ["estimate", "--model", model, "--out", out, "--fisher-type", "mc", "--draws", 2,
                 "--unit", "token", "--structure", "grouped", "--seed", 5, "--max-examples", 6,
                 "--parameters", "*q_proj*", "--parameters", "*norm*"]  # fmt: skip
    text = run(*arguments, "--task", f"a/b={tasks['prose']}", code=2).stderr
    assert "path separator" in text
    text = run(*arguments, "--task", f"prose={tasks['prose']}").stdout
    assert "6 examples" in text
    fisher = fisherscope.FisherStore(out)["prose"]
    identity = fisher.identity
    assert (identity.fisher_type, identity.draws, identity.seed) == ("mc", 2, 5)
    assert (identity.unit, identity.structure) == ("token", "grouped")
    assert all("q_proj" in name or "norm" in name for name in identity.parameters)
    assert fisher.n_examples == 6
    assert "kept" in run(*arguments, "--task", f"prose={tasks['prose']}", "-q").stdout


def test_sums_beyond_a_memory_limit_are_on_disk(run, model, tasks, tmp_path):
    # Would catch a limit that the plan knows and the estimate does not, or the other way round;
    # files that stay behind; a config that forgets them.
    arguments = ["--model", model, "--task", f"prose={tasks['prose']}"]
    assert "is no size" in run("plan", *arguments, "--memory-limit", "much", code=2).stderr
    assert "too small" in run("plan", *arguments, "--memory-limit", "1KB", code=2).stderr
    run("estimate", *arguments, "--out", tmp_path / "whole")
    text = run("plan", *arguments, "--memory-limit", "20KB").stdout
    assert "rounds over the data" in text and "KB on disk" in text
    for folder in (), ("--offload-folder", tmp_path / "sums"):
        out = tmp_path / f"parts{len(folder)}"
        said = run("estimate", *arguments, "--out", out, "--memory-limit", "20KB", *folder).output
        assert "rounds over the data" in said and "part 2 of" in said
        mine, whole = (fisherscope.FisherStore(p)["prose"] for p in (out, tmp_path / "whole"))
        assert all((mine.sums[name] == whole.sums[name]).all() for name in whole.sums)
        assert [p.name for p in out.iterdir() if p.name != "prose"] == []
    assert list((tmp_path / "sums").iterdir()) == []


def test_compare_takes_tasks_of_a_run_or_two_folders(run, finished):
    # Would catch a comparison of a Fisher with itself, or without its ceiling and floor.
    text = run("compare", finished, "prose", "sums").stdout
    assert "prose and sums" in text
    for word in ("cosine", "spearman", "ceiling", "floor"):
        assert word in text
    all_pairs = run("compare", finished).stdout
    assert text == all_pairs
    folders = run("compare", finished / "fisher" / "prose", finished / "fisher" / "sums").stdout
    assert folders.splitlines()[1:] == text.splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prose"], "alone; name two tasks"),
        (["prose", "maths"], "maths"),
        (["prose", "sums", "nothing"], "nothing"),
    ],
)
def test_compare_names_what_is_missing(run, finished, arguments, said):
    # Would catch a bare KeyError.
    assert said in run("compare", finished, *arguments, code=2).stderr


def test_ls_lists_runs_stores_and_single_fishers(run, finished):
    # Would catch a wrong count or a store looked for in the wrong folder.
    for place in (finished, finished / "fisher"):
        lines = run("ls", place).stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["task", "prose", "sums"]
        assert lines[1].split()[1] == "8"
    assert len(run("ls", finished / "fisher" / "sums").stdout.splitlines()) == 2


@pytest.mark.parametrize("command", ["ls", "validate", "compare"])
def test_a_folder_without_fishers_is_named(run, tmp_path, command):
    # Would catch an empty listing that looks like success.
    assert "does not exist" in run(command, tmp_path / "nowhere", code=2).stderr
    assert "holds no Fisher" in run(command, tmp_path, code=2).stderr


def test_validate_finds_a_changed_byte(run, finished, tmp_path):
    # Would catch a check of names and sizes only.
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    lines = run("validate", copy).stdout.splitlines()
    assert {"prose: ok", "sums: ok", "results.json: ok", "report.html: ok"} < set(lines)
    assert any(line.startswith("tables/") for line in lines)
    victim = next((copy / "fisher" / "sums").rglob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    result = run("validate", copy, code=1)
    assert "sums: damaged" in result.stderr
    assert victim.name in result.stderr
    assert "prose: ok" in result.stdout
    run("validate", copy / "fisher" / "prose")


def test_repair_drops_what_is_damaged_and_the_run_is_finished_again(run, finished, tmp_path):
    # Would catch a repair that takes sound things away, or leaves a run that can't go on.
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    usual = json.loads((copy / "results.json").read_text())
    victim = next((copy / "fisher" / "sums").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    (copy / "results.json").write_text("{")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text() + "\n")
    (copy / "fisher" / ".saving.prose").mkdir()
    result = run("validate", copy, "--repair", code=1)
    assert "config.yaml: left alone" in result.stderr
    assert "To be computed again: results.json, sums" in result.stdout
    assert "--config" in result.stdout
    assert sorted(p.name for p in (copy / "fisher").iterdir()) == ["prose"]
    assert not (copy / "results.json").exists()
    arguments = ("analyze", "--config", copy / "config.yaml", "--out", copy, "-q")
    run(*arguments)
    again = json.loads((copy / "results.json").read_text())
    assert [t["trace"] for t in again["tasks"]] == [t["trace"] for t in usual["tasks"]]
    run("validate", copy)
    run("report", copy, "-q")
    run("validate", copy)


def test_report_is_drawn_again_from_the_numbers(run, finished, tmp_path):
    # Would catch a report that needs the model, or that changes the results.
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    before = contents(copy)
    text = run("report", copy).stdout
    assert str(copy / "report.html") in text
    after = contents(copy)
    assert "prose" in after.pop("report.html").decode()
    assert after == before
    assert "does not exist" in run("report", tmp_path, code=2).stderr


def test_demo_runs_the_main_job_on_what_it_builds(run, model, tasks, tmp_path, monkeypatch):
    # Would catch a demo with a code path of its own, or one that does not say what is next.
    built = []

    def build(out, *, seed, progress):
        built.append((str(out), seed, progress))
        return DemoArtifacts(model, model, tasks, {}, 1.0, reused=False)

    monkeypatch.setattr("fisherscope.cli.demo.build", build)
    result = run("demo", "--out", tmp_path / "demo", "--seed", 3)
    assert built == [(str(tmp_path / "demo"), 3, True)]
    analysis = tmp_path / "demo" / "analysis"
    assert (analysis / "report.html").exists()
    assert json.loads((analysis / "results.json").read_text())["settings"]["seed"] == 3
    assert f"Report: {analysis / 'report.html'}" in result.stdout
    assert "fisherscope analyze --model PATH_OR_HUB_ID" in result.stdout


def test_a_traceback_is_there_for_who_asks(run, model, tmp_path):
    # Would catch --traceback that does nothing: the error itself comes through.
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(fisherscope.DataError):
        run("plan", "--model", model, "--task", f"t={tmp_path / 't.jsonl'}", "--traceback")


def test_an_unexpected_error_is_one_line_too(run, model, tasks, monkeypatch):
    # Would catch a page of traceback for a defect of ours, or one that looks like bad input.
    def broken(*_, **__):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("fisherscope.metrics.preparing.plan", broken)
    result = run("plan", "--model", model, "--task", f"prose={tasks['prose']}", code=1)
    assert result.stderr.splitlines()[-1] == (
        "Error: unexpected RuntimeError: first second; --traceback shows where"
    )


def test_a_hub_id_in_a_process_of_its_own(model, tasks, tmp_path):
    # Would catch progress bars of other libraries under -q, a hub id taken for a folder, and
    # a config that would replay on whatever the branch holds by then.
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home" / "hub" / "models--org--tiny"
    shutil.copytree(model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    source = os.path.dirname(os.path.dirname(fisherscope.__file__))
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": source}
    result = subprocess.run(
        [sys.executable, "-c", "from fisherscope.cli import main; main()", "analyze", "-q",
         "--model", "org/tiny", "--task", f"prose={tasks['prose']}", "--no-damage",
         "--out", str(tmp_path / "run")],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **home},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout == f"Report: {tmp_path / 'run' / 'report.html'}\n"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["model"], config["revision"]) == ("org/tiny", commit)


def test_checkpoints_are_left_alone(model, finished):
    # Would catch a run that writes into the folder of the model.
    del finished
    assert {p.name for p in model.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert checkpoints.VOCABULARY == 64
