from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from fisherscope.defaults import FisherConfig
from fisherscope.errors import ConfigError
from fisherscope.metrics.config_file import config_from_yaml, config_to_yaml
from fisherscope.metrics.run_config import DamageConfig, RunConfig
from fisherscope.naming import layers

MINIMAL = "model: some/model\ntasks: {code: code.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_survives_the_file(tmp_path):
    # Would catch a field that is dropped, renamed or turned into another type on the way.
    config = RunConfig(
        model="org/name",
        tasks={"数学": str(tmp_path / "a b.jsonl"), "x: y": str(tmp_path / "c.jsonl")},
        out=str(tmp_path / "run"),
        fisher=FisherConfig(
            structure="grouped",
            fisher_type="mc",
            unit="token",
            parameters=["*.q_proj.*", "*norm*"],
            likelihood="causal-lm",
            draws=3,
            seed=7,
            batch_size=2,
            max_examples=9,
            halves=True,
            on_nonfinite="skip",
        ),
        max_length=33,
        sparsity=0.25,
        damage=DamageConfig(enabled=False, measure=False, max_examples=None, fraction=0.1),
        trust_remote_code=True,
        dtype="bfloat16",
        device="cpu",
        revision="v1.0",
        memory_limit="8GB",
        offload_folder=str(tmp_path / "sums"),
    )
    assert config_from_yaml(write(tmp_path, config_to_yaml(config))) == config


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (None, None),
        ("*mlp*", "*mlp*"),
        (("*mlp*", "*norm*"), ["*mlp*", "*norm*"]),
        (layers(3, 7), "layers[3:7]"),
        (re.compile("mlp|norm", re.IGNORECASE), "re:(?i)mlp|norm"),
        (
            ["*mlp*", re.compile(r"\.(q|k)_proj"), layers(-2)],
            ["*mlp*", r"re:\.(q|k)_proj", "layers[-2:]"],
        ),
    ],
)
def test_every_kind_of_selection_survives_the_file(tmp_path, selection, text):
    # Would catch a YAML file with Python objects in it, or one that replays other parameters.
    tasks = {"a": str(tmp_path / "a.jsonl")}
    fisher = FisherConfig(parameters=selection, halves=True)
    config = RunConfig(model="org/name", tasks=tasks, fisher=fisher)
    path = write(tmp_path, config_to_yaml(config))
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["fisher"]["parameters"] == text
    assert config_from_yaml(path) == config


def test_paths_belong_to_the_folder_of_the_file(tmp_path, monkeypatch):
    # Would catch paths resolved against wherever the command happens to run.
    home = tmp_path / "project"
    (home / "models" / "tiny").mkdir(parents=True)
    text = "model: models/tiny\ntasks: {a: data/a.jsonl, b: /else/b.jsonl}\nout: runs/x\n"
    write(home, text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = config_from_yaml(os.path.join("..", "project", "run.yaml"))
    assert config.model == str(home / "models" / "tiny")
    assert config.tasks == {"a": str(home / "data" / "a.jsonl"), "b": "/else/b.jsonl"}
    assert config.out == str(home / "runs" / "x")


def test_a_hub_id_is_left_alone(tmp_path):
    # Would catch a hub id turned into a path below the config file.
    assert config_from_yaml(write(tmp_path, MINIMAL)).model == "some/model"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: x\n", "unknown key 'modle'; did you mean model"),
        (MINIMAL + "max-length: 3\n", "did you mean max_length"),
        (MINIMAL + "draws: 3\n", "did you mean fisher.draws"),
        (MINIMAL + "fisher: {sed: 3}\n", "unknown key fisher.sed; did you mean seed"),
        (MINIMAL + "fisher: {halves: false}\n", "unknown key fisher.halves"),
        (MINIMAL + "fisher: 3\n", "fisher is 3; expected a mapping"),
        (MINIMAL + "zzz: 3\n", "known are model, tasks"),
        (MINIMAL + "model: other\n", "run.yaml:3:1 is not valid YAML: key 'model' is there twice"),
        ("model: [\n", "run.yaml:2:1 is not valid YAML"),
        ("- a\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("model: x\n", "no tasks"),
        ("tasks: {a: b}\n", "no model"),
        (MINIMAL + "fisher: {draws: '3'}\n", "fisher.draws is '3'"),
        (MINIMAL + "fisher: {parameters: 're:('}\n", "fisher.parameters: 're:(' is not a regular"),
        (
            MINIMAL + "fisher: {parameters: [3]}\n",
            "fisher.parameters: parameters cannot be selected",
        ),
        (MINIMAL + "tasks2: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, text, said):
    # Would catch a typo that is silently ignored, so that a run uses defaults unnoticed.
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    # Would catch a bare FileNotFoundError.
    with pytest.raises(ConfigError, match="nothing.yaml"):
        config_from_yaml(tmp_path / "nothing.yaml")
