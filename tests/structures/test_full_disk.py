"""A disk that is really full: a small tmpfs in a namespace of its own, and a limit of file size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Saves ever larger Fishers until the disk is full, then looks at what is there.
SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {src!r}]
import fisherscope as fs
from fisherscope.errors import StoreError
from structures.fishers import build, same_bits, scores

folder = Path(sys.argv[1])
def make(size):
    return build(scores("ab", seed=size, shapes={{"a.weight": (size, 64)}}))
store, kept, said, size = fs.FisherStore(folder), {{}}, [], 16
for size in (16, 64, 256, 1024, 4096, 16384):
    try:
        store["math"] = make(size)
        kept["math"] = size
    except StoreError as error:
        said.append(str(error))
        break
found = fs.FisherStore(folder)
whole = same_bits(found["math"], make(kept["math"]))
names = sorted(os.listdir(folder))
store["math"] = make(16)
print(json.dumps({{"said": said, "whole": whole, "names": names, "size": kept["math"],
                   "again": same_bits(fs.FisherStore(folder)["math"], make(16))}}))
"""


def run(tmp_path: Path, before: str, wrapper: list[str]) -> dict:
    script = tmp_path / "script.py"
    text = SCRIPT.format(tests=str(ROOT / "tests"), src=str(ROOT / "src"))
    script.write_text(text)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{before.format(disk=disk)} exec {sys.executable} {script} {disk}"
    done = subprocess.run([*wrapper, "sh", "-c", command], capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def namespaces() -> bool:
    command = "mount -t tmpfs -o size=64k none /mnt"
    try:
        found = subprocess.run(
            ["unshare", "-rm", "sh", "-c", command], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return found.returncode == 0


def check(found: dict, reason: str) -> None:
    (said,) = found["said"]
    assert "can't write" in said and reason in said and "unchanged" in said
    assert "Check that the disk has room" in said
    assert found["whole"] and found["again"]
    assert found["names"] == ["math"] and found["size"] >= 16


# Planted: what was there removed before the new one is whole; half of the new one left, with the
# room that it takes. Would catch: an error that says nothing to do.
@pytest.mark.skipif(not namespaces(), reason="no tmpfs of one's own on this machine")
def test_a_tmpfs_that_is_full(tmp_path):
    found = run(tmp_path, "mount -t tmpfs -o size=1m none {disk} &&", ["unshare", "-rm"])
    check(found, "No space left on device")


# Another real way for writes to fail in the middle of a file: here with EFBIG.
@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit")
def test_a_file_that_may_not_grow(tmp_path):
    found = run(tmp_path, "trap '' XFSZ; ulimit -f 512;", [])
    check(found, "File too large")
