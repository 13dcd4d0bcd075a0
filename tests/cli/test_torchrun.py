"""Commands that torchrun starts several times do what one does, and say it once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

import fisherscope as fs
from fisherscope.cli import main
from oracles.comparison import close, plain
from oracles.processes import Child, values

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


def launched(*arguments: object, code: int = 0) -> str:
    """The command on two ranks with a launcher's environment; what both say.

    Forked instead of started: an interpreter of its own takes seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = [Child(_command, rank, port, [str(a) for a in arguments]) for rank in range(2)]
    outcomes = values([child.outcome(DEADLINE) for child in children])
    assert [found for found, _ in outcomes] == [code] * 2, outcomes
    return "".join(said for _, said in outcomes)


def _command(rank: int, port: int, arguments: list[str]) -> tuple[int, str]:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


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
    again = launched("analyze", *arguments)
    assert again.count("there already") >= 2


# Would catch: a plan of all ranks printed by each, or refused.
def test_two_processes_plan_once(model, tasks):
    given = [f"{name}={path}" for name, path in tasks.items()]
    said = launched("plan", "--model", model, *(a for task in given for a in ("--task", task)))
    assert said.count("beside the model") == len(tasks)


# Would catch: an error of all ranks printed by each, also where the launcher ends all of them as
# soon as one has failed; a command that writes the same files twice.
def test_errors_and_other_commands(model, tasks, tmp_path):
    missing = ["--task", f"prose={tmp_path / 'nothing.jsonl'}", "--out", tmp_path / "store"]
    said = launched("estimate", "--model", model, *missing, code=2)
    assert said.count("nothing.jsonl does not exist") == 1
    said = torchrun("ls", tmp_path, code=2)
    assert said.stderr.count("runs in one process") == 1
