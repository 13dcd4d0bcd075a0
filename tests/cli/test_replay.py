"""A study's config replays it: all that its options say arrives again."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.metrics.study_run import keep_config

STUDIES = {
    "interfere": "interference",
    "forget": "forgetting",
    "brittle": "brittleness",
    "remedy": "remedies",
    "percolate": "percolation",
}


@pytest.fixture
def commands(model, other_model, tasks, tmp_path, monkeypatch):
    """Of each study, with no option left at its default, and files relative to where it is run."""
    monkeypatch.chdir(tmp_path)
    prose, sums = (f"{name}={os.path.relpath(path, tmp_path)}" for name, path in tasks.items())
    model, other_model = (os.path.relpath(place, tmp_path) for place in (model, other_model))
    held_out = prose.removeprefix("prose=")
    both = ("--task", prose, "--task", sums, "--draws", 3, "--seed", 2)
    old = ("--task", prose, "--learn", sums, "--held-out", held_out, "--seed", 2)
    return {
        "interfere": (
            *("interfere", "--model", model, *both, "--scale", 0.5, "--scale", 1),
            *("--small", 0.7, "--no-heads", "--no-conflicts"),
        ),
        "forget": (
            *("forget", "--base", model, "--tuned", other_model, *both),
            *("--checkpoints", f"half={model}"),
        ),
        "brittle": (
            *("brittle", "--compare", f"a={model}", "--compare", f"b={other_model}", *old),
            *("--rate", 0.01, "--rate", 0.02, "--share", 0.7, "--steps", 3, "--batch-rows", 4),
            *("--every", 1, "--seeds", 3, "--looks", 1),
        ),
        "remedy": (
            *("remedy", "--model", model, *old, "--rate", 0.01, "--steps", 4, "--batch-rows", 4),
            *("--every", 2, "--seeds", 2, "--arm", "ewc", "--level", 0.4, "--strength", 7),
            *("--freeze-share", 0.3, "--mask-share", 0.3, "--scope", "tensor", "--lora-share", 0.3),
            *("--lora-rank", 2, "--lora-rate", 3, "--fisher-rows", 5),
        ),
        "percolate": (
            *("percolate", "--model", model, *both, "--level", "neuron", "--order", "random"),
            *("--removal", "mean", "--repetitions", 2, "--points", 4, "--fraction", 0.5),
            *("--watch", 3, "--side", 0, "--candidates", 2, "--no-graph"),
        ),
    }


@pytest.fixture
def seen(monkeypatch):
    """What each study was asked for, in place of the study."""
    found: list[Any] = []

    def ask(*given: Any, **options: Any) -> Any:
        found.append((described(given), described(options)))
        return SimpleNamespace(settings={})

    def stop(run: Any, *rest: Any, **options: Any) -> None:
        found[-1] += (described(rest[3]),)
        keep_config(run)

    for command, study in STUDIES.items():
        module = importlib.import_module(f"fisherscope.cli.{command}")
        monkeypatch.setattr(module, study, ask)
        monkeypatch.setattr(module, "leave", stop)
    return found


def described(value: Any) -> Any:
    """Something that can be compared: models by their weights, rows by their ids, no places."""
    if isinstance(value, dict):
        hidden = {"folder", "on_plan", "progress"}
        return {key: described(item) for key, item in value.items() if key not in hidden}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if hasattr(value, "parameters") and callable(value.parameters):
        return model_fingerprint(value)
    if hasattr(value, "trace"):
        return value.trace()
    return getattr(value, "id", value)


# Would catch: an option that is not written down or not read again, one that is read as another
# task or model, a new task that is taken for an old one, paths that mean something else elsewhere.
@pytest.mark.parametrize("study", STUDIES)
def test_a_config_replays_every_option(study, commands, seen, run, tmp_path, monkeypatch):
    run(*commands[study], "--out", "first", "-q")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = tmp_path / "first" / "config.yaml"
    run(study, "--config", config, "--out", "again", "-q")
    assert seen[0] == seen[1]
    first, again = (
        yaml.safe_load((place / "config.yaml").read_text())
        for place in (tmp_path / "first", tmp_path / "elsewhere" / "again")
    )
    assert first.pop("out") != again.pop("out") and first == again
    # The command line wins.
    name = {"brittle": "--steps", "remedy": "--steps", "percolate": "--points"}.get(study)
    if name is not None:
        run(study, "--config", config, "--out", "other", name, 6, "-q")
        assert seen[2] != seen[0]


# Would catch: a study's options that are dropped in silence by a command that has others.
def test_another_command_refuses_it(commands, seen, run, tmp_path):
    del seen
    run(*commands["interfere"], "--out", tmp_path / "run", "-q")
    config = tmp_path / "run" / "config.yaml"
    for command in ("analyze", "percolate"):
        said = run(command, "--config", config, "--out", tmp_path / "no", code=2).output
        assert "is of `fisherscope interfere`" in said
    config.write_text(config.read_text().replace("  small:", "  smal:"))
    said = run("interfere", "--config", config, "--out", tmp_path / "no", code=2).output
    assert "study.smal is no option of interfere" in said
    assert not (tmp_path / "no").exists()
