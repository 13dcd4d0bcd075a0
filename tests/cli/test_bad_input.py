"""Every bad input: exit code 2, one line that names the thing and the fix, nothing written."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from checkpoints import contents

FINE = '{"text": "the cat sees the dog"}\n'


def analyze(run, model, task, out, *more, code=2):
    result = run("analyze", "--model", model, "--task", task, "--out", out, *more, code=code)
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.output
    return errors[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (FINE + '{"text": \n' + FINE, "t.jsonl:2"),
        (FINE + FINE + '{"words": "x"}\n', "t.jsonl:3"),
        (FINE + '["text"]\n', "t.jsonl:2"),
        (FINE + '{"text": ""}\n', "t.jsonl:2"),
        (FINE + '{"text": "cat"}\n', "t.jsonl:2"),
        (FINE + '{"messages": [{"role": "user", "content": "cat"}]}\n', "t.jsonl:2"),
        ('{"id": 1, "text": "the cat"}\n' * 2, "t.jsonl:2"),
    ],
    ids=[
        "empty",
        "blank",
        "broken",
        "field",
        "list",
        "no-text",
        "nothing-supervised",
        "no-chat-template",
        "same-id",
    ],
)
def test_a_bad_row_is_named_with_file_and_line(run, model, tmp_path, content, said):
    # Would catch a message without the place, and a run folder left behind.
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    error = analyze(run, model, f"t={path}", tmp_path / "run")
    assert str(path) in error
    assert said in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.jsonl"]


def test_a_missing_file_is_named(run, model, tmp_path):
    # Would catch a bare FileNotFoundError.
    assert "nowhere.jsonl" in analyze(
        run, model, f"t={tmp_path / 'nowhere.jsonl'}", tmp_path / "run"
    )
    assert list(tmp_path.iterdir()) == []


def test_masked_labels_are_refused(run, tmp_path, model, tasks, monkeypatch):
    # Would catch 0/0 for a task in which no label is left.
    from fisherscope.metrics import preparing

    read = preparing.read_jsonl

    def masked(*arguments, **options):
        examples = read(*arguments, **options)
        for example in examples:
            example.labels.fill_(-100)
        return examples

    monkeypatch.setattr(preparing, "read_jsonl", masked)
    error = analyze(run, model, f"prose={tasks['prose']}", tmp_path / "run")
    assert "masked" in error
    assert "'prose'" in error
    assert list(tmp_path.iterdir()) == []


def test_a_token_beyond_the_vocabulary_is_named(run, tmp_path, tasks):
    # Would catch an index error from deep inside the embedding.
    small = checkpoints.llama(tmp_path / "small", vocabulary=12)
    error = analyze(run, small, f"prose={tasks['prose']}", tmp_path / "run")
    assert "vocabulary of 12" in error
    assert "example '0'" in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_parameter_pattern_is_named(run, model, tmp_path, tasks):
    # Would catch an empty estimate.
    error = analyze(
        run, model, f"prose={tasks['prose']}", tmp_path / "run", "--parameters", "*.q_prj.*"
    )
    assert "*.q_prj.*" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", "..", "a\\b", "a\nb", "x" * 101])
def test_a_task_name_with_a_path_in_it_is_refused(run, model, tmp_path, tasks, name):
    # Would catch files written outside the run folder.
    error = analyze(run, model, f"{name}={tasks['prose']}", tmp_path / "run")
    assert "task name" in error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers_are_named(run, model, tmp_path, tasks):
    # Would catch hours of NaN.
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    weights["model.norm.weight"][:2] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    error = analyze(run, broken, f"prose={tasks['prose']}", tmp_path / "run")
    assert "model.layers.1.mlp.up_proj.weight (1 of" in error
    assert "model.norm.weight (2 of 16)" in error
    assert not (tmp_path / "run").exists()


def test_a_model_that_needs_no_gradients_works(run, model, tmp_path, tasks, finished, monkeypatch):
    # Would catch an estimate that silently covers nothing when everything is frozen.
    from fisherscope.metrics import preparing

    load = preparing.load_model
    monkeypatch.setattr(preparing, "load_model", lambda *a: load(*a).requires_grad_(False))
    run("analyze", "--model", model, "--task", f"prose={tasks['prose']}", "-q", "--out",
        tmp_path / "run")  # fmt: skip
    frozen = json.loads((tmp_path / "run" / "results.json").read_text())
    usual = json.loads((finished / "results.json").read_text())
    assert frozen["tasks"][0]["trace"] == pytest.approx(usual["tasks"][0]["trace"], rel=1e-6)


def test_a_folder_that_cannot_be_written_is_found_first(run, model, tmp_path, tasks, monkeypatch):
    # Would catch a model read, and hours spent, before the first write.
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    def never(*_, **__):
        raise AssertionError("the model was read before the folder was checked")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("fisherscope.metrics.preparing.load_model", never)
    error = analyze(run, model, f"prose={tasks['prose']}", tmp_path / "run")
    assert "choose another --out" in error


def test_too_little_space_is_found_first(run, model, tmp_path, tasks, monkeypatch):
    # Would catch a disk that fills up at the last task.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    error = analyze(run, model, f"prose={tasks['prose']}", tmp_path / "run")
    assert "0.00 GB free" in error
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_is_finished(run, model, tmp_path, tasks, monkeypatch):
    # Would catch a half-written file, and the loss of the tasks that were done.
    out = tmp_path / "run"
    arguments = [f"prose={tasks['prose']}", out, "--task", f"sums={tasks['sums']}"]
    flush = "fisherscope.metrics.run_folder.os.fsync"

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    from fisherscope.metrics import estimating

    estimate = estimating.estimate
    calls = []

    def then_full(*a, **k):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr(flush, full)
        return estimate(*a, **k)

    monkeypatch.setattr(estimating, "estimate", then_full)
    error = analyze(run, model, *arguments, code=1)
    assert "disk" in error or "space" in error
    assert not (out / "results.json").exists()
    monkeypatch.undo()
    run("validate", out)
    run("analyze", "--config", out / "config.yaml", "-q")
    assert json.loads((out / "results.json").read_text())["format"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--unit", "token"], "unit is 'example' there and 'token' now"),
        (["--fisher-type", "mc"], "fisher_type is 'empirical' there and 'mc' now"),
        (["--max-examples", 4], "other data"),
        (["--parameters", "*proj*"], "of its parameters are others"),
        (["--dtype", "float64"], "dtype"),
    ],
)
def test_other_settings_do_not_mix_into_a_run(run, model, tasks, finished, change, said):
    # Would catch tables that mix two settings, or a finished run that is overwritten.
    before = contents(finished)
    more = [*change, "--task", f"sums={tasks['sums']}"]
    error = analyze(run, model, f"prose={tasks['prose']}", finished, *more)
    assert said in error
    assert "choose another --out" in error.lower()
    assert contents(finished) == before


def test_another_model_does_not_mix_into_a_run(run, other_model, tasks, finished):
    # Would catch Fishers of two models side by side under one report.
    before = contents(finished)
    error = analyze(run, other_model, f"prose={tasks['prose']}", finished)
    assert "another model" in error
    assert "choose another --out" in error.lower()
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model"),
        (["--model", "x"], "no tasks"),
        (["--model", "x", "--task", "name"], "not NAME=FILE"),
        (["--model", "x", "--task", "a=b", "--task", "a=c"], "given twice"),
        (["--model", "./nowhere", "--task", "a=b.jsonl"], "b.jsonl does not exist"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_missing_or_wrong_options_are_named(run, arguments, said):
    # Would catch a traceback where the command line is wrong.
    result = run("analyze", "--out", "never", *arguments, code=2)
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_full_or_frozen_model_is_not_touched(model):
    # The fixtures are shared: would catch a test above that writes into the checkpoint.
    weights = load_file(model / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
