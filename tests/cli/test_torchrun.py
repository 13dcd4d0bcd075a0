"""Commands that torchrun starts several times do what one does, and say it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fisherscope as fs
from oracles.comparison import close, plain

# Generous: on a loaded machine three interpreters start slowly. A hang is a failure.
DEADLINE = 240.0


def torchrun(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "fisherscope", *map(str, arguments)]
    source = str(Path(fs.__file__).parents[1])
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        check=False,
    )
    assert (found.returncode == 0) == (code == 0), found.stdout + found.stderr
    return found


# Would catch: a rank that estimates for itself (numbers right, work done twice, two writers of
# one folder refused), one that speaks as well, one that waits for the first one's analysis.
def test_two_processes_make_the_run_of_one(model, tasks, tmp_path, finished):
    arguments = ["--model", model, "--out", tmp_path / "run"]
    for name, path in tasks.items():
        arguments += ["--task", f"{name}={path}"]
    said = torchrun("analyze", *arguments)
    assert said.stdout.count("Report: ") == 1
    assert said.stdout.count("beside the model") == len(tasks)
    assert said.stderr.count("Fisher of prose (1 of 2)") == 2  # estimated, then taken
    whole, found = (fs.FisherStore(run / "fisher") for run in (finished, tmp_path / "run"))
    assert list(found) == list(whole)
    for task in whole:
        close(plain(found[task]), plain(whole[task]), task)
    one, two = (
        json.loads((run / "results.json").read_text()) for run in (finished, tmp_path / "run")
    )
    for a, b in zip(one["tasks"], two["tasks"], strict=True):
        assert abs(a["trace"] - b["trace"]) <= 1e-6 * a["trace"]
    assert set(one) == set(two) and one["settings"] == two["settings"]
    hidden = {p.name for p in (tmp_path / "run").rglob(".*")}
    assert not hidden
    again = torchrun("analyze", *arguments)
    assert again.stderr.count("there already") >= 2


# Would catch: a plan of all ranks printed by each, or refused.
def test_two_processes_plan_once(model, tasks):
    given = [f"{name}={path}" for name, path in tasks.items()]
    said = torchrun("plan", "--model", model, *(a for task in given for a in ("--task", task)))
    assert said.stdout.count("beside the model") == len(tasks)


# Would catch: an error of all ranks printed by each, a command that writes the same files twice.
def test_errors_and_other_commands(model, tasks, tmp_path):
    missing = ["--task", f"prose={tmp_path / 'nothing.jsonl'}", "--out", tmp_path / "store"]
    said = torchrun("estimate", "--model", model, *missing, code=2)
    assert said.stderr.count("nothing.jsonl does not exist") == 1
    said = torchrun("ls", tmp_path, code=2)
    assert said.stderr.count("runs in one process") == 1
