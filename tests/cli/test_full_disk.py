"""Commands on a disk that fills up under them: a small tmpfs in a namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from structures.test_full_disk import namespaces

ROOT = Path(__file__).parents[2]
# Runs a command whole, then on a disk that somebody else fills up to some room right after it was
# found to have enough, then again with the disk emptied.
SCRIPT = """
import functools, json, shutil, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {src!r}]
import torch
from click.testing import CliRunner
import checkpoints
import fisherscope as fs
from fisherscope.cli import analyze, main
from fisherscope.metrics import pipeline, run_folder

torch.set_num_threads(1)
disk, home, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
model = checkpoints.llama(home / "llama")
options = ["--model", model, "--task", f"prose={{checkpoints.prose(home / 'prose.jsonl')}}"]
options += ["--task", f"sums={{checkpoints.sums(home / 'sums.jsonl')}}", "-q"]
# Figures take longer than a tiny model.
analyze.write_report = lambda _, path: run_folder.write_bytes(path, b"report" * 5000)
check_space = pipeline.check_space

def filled(out, needed, room):
    check_space(out, needed)
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - room))

def run(out, room=None):
    pipeline.check_space = functools.partial(filled, room=room) if room is not None else check_space
    done = CliRunner().invoke(main, [command, *map(str, options), "--out", str(out)])
    return done.exit_code, done.stderr

def traces(out):
    store = fs.FisherStore(out / "fisher" if command == "analyze" else out)
    return {{name: store[name].trace() for name in store}}

code, said = run(home / "whole")
assert code == 0, said
size = sum(p.stat().st_blocks * 512 for p in (home / "whole").rglob("*"))
found = []
for part in (0.0, 0.4, 0.9):
    out = disk / "out"
    code, said = run(out, int(size * part))
    # The states of unfinished estimates are what the next run goes on from.
    hidden = [p.name for p in out.rglob(".*") if p.name != ".unfinished"] if out.is_dir() else []
    looked = CliRunner().invoke(main, ["validate", str(out)]) if out.is_dir() else None
    (disk / "filler").unlink()
    again, _ = run(out)
    found.append({{"code": code, "said": said, "hidden": hidden, "looked": looked and looked.output,
                  "again": again, "same": traces(out) == traces(home / "whole"),
                  "names": sorted(p.name for p in disk.iterdir())}})
    shutil.rmtree(out)
print(json.dumps(found))
"""


# Planted: half of a folder left, half of a file left. Would catch: a traceback, or an error of the
# operating system that says nothing to do; a lock that nobody holds; what can't be gone on from.
@pytest.mark.skipif(not namespaces(), reason="no tmpfs of one's own on this machine")
@pytest.mark.parametrize("command", ["estimate", "analyze"])
def test_a_command_on_a_full_disk_ends_and_goes_on(tmp_path, command):
    script, disk, home = tmp_path / "script.py", tmp_path / "disk", tmp_path / "home"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), src=str(ROOT / "src")))
    disk.mkdir()
    home.mkdir()
    shell = f"mount -t tmpfs -o size=6m none {disk} && exec {sys.executable} {script} {disk} {home}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{shell} {command}"], capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    all_found = json.loads(done.stdout.splitlines()[-1])
    for found in all_found:
        assert found["code"] == 1, found
        (line,) = found["said"].splitlines()
        assert line.startswith("Error: ") and ("No space left" in line or "disk is full" in line)
        assert "room" in line or "free some space" in line
        assert found["hidden"] == []
        assert "damaged." not in (found["looked"] or "")
        assert found["again"] == 0 and found["same"]
        assert found["names"] == ["out"]
    assert any(found["looked"] for found in all_found)
