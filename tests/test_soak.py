"""Updates, saves, loads and evictions through one store, over and over: nothing may grow.

Ordinarily under ten seconds; ``FISHERSCOPE_SOAK=600 pytest -m slow tests/test_soak.py`` takes ten
minutes and leaves what it saw in seen.json of its temporary folder.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fisherscope as fs
from structures.fishers import build, scores

TASKS = 6
SHAPES = {"a.weight": (192, 192), "a.bias": (192,), "square.weight": (192, 192)}
BYTES = (2 * 192 * 192 + 192) * 4
"""One Fisher of float32 sums: 0.3 MB. Its ledger and its names come on top."""
LIMIT = 3 * 2 * BYTES
"""A little less than the files of three of the six tasks take, with their averages."""


class Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


def mallinfo():
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # glibc before 2.33, another C library, another system
        return None
    found.restype = Mallinfo
    return found


MALLINFO = mallinfo()
pytestmark = pytest.mark.skipif(MALLINFO is None, reason="counts what glibc's malloc says")


def in_use() -> int:
    """Bytes that were asked for and not given back: of arenas, and of maps of their own."""
    info = MALLINFO()
    return info.uordblks + info.hblkhd


def resident() -> int:
    """Bytes of the process itself, in memory or swapped: those in use, and what malloc keeps."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))


def look(folder: Path) -> dict[str, int]:
    gc.collect()
    return {
        # Tensors that are read are pages of their file, in nobody's count of memory.
        "maps": Path("/proc/self/maps").read_text().count(str(folder)),
        "in_use": in_use(),
        "blocks": sys.getallocatedblocks(),
        "resident": resident(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def churn() -> None:
    """Have Python enlarge its table of interned strings before anything is counted.

    It fills up with names that come and go (of files, say), is then made anew twice as large, by
    3.8 MB, and stays so: the one step that earlier runs of ten minutes had.
    """
    for number in range(300_000):
        sys.intern(f"name {number}")


def soak(folder: Path, seconds: float) -> dict:
    """Work on the store until the time is over."""
    churn()
    parts = [build(scores("ab", seed=n, shapes=SHAPES)) for n in range(TASKS)]
    store = fs.FisherStore(folder)
    averages = {f"task {n}": fs.FisherEMA(0.9) for n in range(TASKS)}
    draw, rounds, evicted = np.random.default_rng(0), 0, 0
    seen: list[dict[str, float]] = []
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < seconds or rounds < 36:
        # All tasks in turn, so that the same of them are in memory at every look; which is read
        # besides is drawn.
        task, fisher = f"task {rounds % TASKS}", parts[rounds % TASKS]
        averages[task].update(fisher)
        store.put(task, fisher, averages[task])
        other = fs.FisherStore(folder)  # another reader, who has nothing in memory yet
        read = other[task]
        assert torch.equal(read.sums["a.bias"], fisher.sums["a.bias"])
        again = other.ema(task)
        assert again is not None and again.steps == averages[task].steps
        other[str(draw.choice(list(other)))]
        while sum(store.nbytes(name) for name in store) > LIMIT:
            del store[store.least_recent()[0]]
            evicted += 1
        rounds += 1
        if rounds % TASKS == 0:
            del other, read, again
            seen.append({"round": rounds, "seconds": now, **look(folder)})
    hidden = [p.name for p in folder.rglob("*") if any(s.startswith(".") for s in p.parts[-2:])]
    return {"rounds": rounds, "evicted": evicted, "seen": seen, "hidden": hidden,
            "tasks": len(store)}  # fmt: skip


def check(found: dict) -> None:
    """Bounds from what one leaked thing would be, set before any run of ten minutes."""
    assert found["evicted"] > 5 and 0 < found["tasks"] <= 3
    assert found["hidden"] == []
    # What is used for the first time has been by the end of the first third.
    seen = found["seen"][len(found["seen"]) // 3 :]
    grown = {what: seen[-1][what] - seen[0][what] for what in seen[0]}
    for what in ("files", "maps"):
        assert max(s[what] for s in seen) == min(s[what] for s in seen)
    # Exact to the byte: one Fisher that is kept shows, however long the run.
    assert grown["in_use"] < BYTES / 2
    # Python's own small objects are not in there. safetensors 0.8 loses one number per offset in a
    # file that it reads, 15 in a round; what a record takes is one more, first uses are a few
    # hundred. A name that is kept in each round, with its place in a list, is two.
    assert grown["blocks"] < 17 * grown["round"] + 500
    # What is in use, and what malloc keeps for later: less than all Fishers that are alive at once.
    assert grown["resident"] < (2 * TASKS + 6) * BYTES


# Planted: a list that keeps every tenth Fisher that is read, whose pages are the file's; one that
# keeps what is put; a file that each save leaves open; a folder set aside and never removed.
def test_a_store_does_not_grow(tmp_path):
    check(soak(tmp_path / "store", 5.0))


@pytest.mark.slow
def test_a_store_does_not_grow_for_long(tmp_path):
    found = soak(tmp_path / "store", float(os.environ.get("FISHERSCOPE_SOAK", "600")))
    (tmp_path / "seen.json").write_text(json.dumps(found))
    check(found)
