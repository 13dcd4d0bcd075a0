from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import checkpoints
from fisherscope.cli import main

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are slower on many threads, and the tests run in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch):
    """Figures take longer than a tiny model; the finished run below has a real report."""
    monkeypatch.setattr(
        "fisherscope.cli.analyze.write_report", lambda results, path: path.write_text("report")
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "prose": checkpoints.prose(folder / "prose.jsonl"),
        "sums": checkpoints.sums(folder / "sums.jsonl"),
    }


@pytest.fixture
def run() -> Run:
    """Call the command line in this process."""

    def call(*arguments: object, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        if code is not None:
            assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="session")
def finished(model, tasks, tmp_path_factory) -> Path:
    """One complete run; tests may read it but not write into it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["analyze", "--model", model, "--out", out, "--quiet"]
    for name, path in tasks.items():
        arguments += ["--task", f"{name}={path}"]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out
