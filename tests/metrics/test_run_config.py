from __future__ import annotations

import dataclasses

import pytest

from fisherscope.defaults import FisherConfig
from fisherscope.errors import ConfigError, TaskError
from fisherscope.metrics.names import check_name, check_names
from fisherscope.metrics.run_config import DamageConfig, RunConfig

TASKS = {"math": "math.jsonl"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("a/b", "path separator"),
        ("a\\b", "path separator"),
        ("..", "path in it"),
        ("a..b", "path in it"),
        (".", "path in it"),
        ("a\nb", "control character U+000A"),
        ("a\x00b", "control character U+0000"),
        ("a\u202eb", "control character U+202E"),
        ("x" * 101, "101 characters"),
        ("語" * 60, "too long for a folder"),
        (" code", "blank"),
        (False, "not text"),
    ],
)
def test_unusable_task_names_are_refused(name, said):
    # Would catch a name that escapes the run folder, or that no file system takes.
    with pytest.raises(TaskError, match=said.replace("+", r"\+")):
        check_name(name)


@pytest.mark.parametrize("name", ["code", "GSM-8k v1.1", "数学", "x" * 100, "<b>", "CON%2e"])
def test_ordinary_task_names_pass(name):
    # Would catch a check that is stricter than it says.
    assert check_name(name) == name


def test_names_that_a_file_system_may_merge_are_refused():
    # Would catch one task's Fisher overwriting another's on a case-insensitive disk.
    with pytest.raises(TaskError, match="'Math' and 'math'"):
        check_names(["Math", "math"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": ""}, "model is ''"),
        ({"tasks": {}}, "at least one"),
        ({"tasks": {"math": 3}}, "tasks.math is 3"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": True}, "max_length is True"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"dtype": "fp8"}, "dtype is 'fp8'; expected one of auto"),
        ({"trust_remote_code": "no"}, "trust_remote_code is 'no'"),
        ({"fisher": FisherConfig(draws=0)}, "fisher.draws is 0"),
        ({"fisher": FisherConfig(unit="word")}, "fisher.unit is 'word'"),  # type: ignore[arg-type]
        ({"fisher": FisherConfig(parameters=[])}, "fisher.parameters"),
        ({"fisher": FisherConfig(parameters=["*", " "])}, "fisher.parameters is ' '"),
        ({"fisher": FisherConfig(parameters=lambda n, p: True)}, "lambda> cannot be written"),
        ({"damage": DamageConfig(max_examples=1)}, "damage.max_examples is 1"),
        ({"memory_limit": "much"}, "memory_limit='much' is no size"),
        ({"memory_limit": -1}, "memory_limit=-1"),
        ({"offload_folder": ""}, "offload_folder is ''"),
        ({"damage": DamageConfig(fraction=0.0)}, "damage.fraction is 0.0"),
    ],
)
def test_unusable_settings_are_refused_by_name(change, said):
    # Would catch a bad value that only blows up (or is ignored) hours into a run.
    with pytest.raises(ConfigError) as caught:
        RunConfig(**{"model": "m", "tasks": TASKS, **change})
    assert said in str(caught.value)


def test_a_run_cannot_be_changed_once_it_is_checked():
    # Would catch a config whose values no longer are the ones that were checked.
    config = RunConfig(model="m", tasks=TASKS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 2.0  # type: ignore[misc]
