"""Updates, saves, loads and evictions through one store, over and over: nothing may grow.

Ordinarily 15 seconds; ``FISHERSCOPE_SOAK=600 pytest -m slow tests/test_soak.py`` takes ten minutes
and leaves what it saw in seen.json of its temporary folder.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fisherscope as fs
from structures.fishers import build, scores

TASKS = 6
SHAPES = {"a.weight": (192, 192), "a.bias": (192,), "square.weight": (192, 192)}
LIMIT = 3 * (2 * 192 * 192 + 192) * 8
"""Room for the files of three of the six tasks with their averages."""


def own_memory() -> int:
    """Bytes of the process itself, in memory or swapped: pages of files come and go alone."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def soak(folder: Path, seconds: float) -> dict:
    """Work on the store until the time is over."""
    parts = [build(scores("ab", seed=n, shapes=SHAPES)) for n in range(TASKS)]
    store = fs.FisherStore(folder)
    averages = {f"task {n}": fs.FisherEMA(0.9) for n in range(TASKS)}
    draw, rounds, evicted = np.random.default_rng(0), 0, 0
    seen: list[tuple[float, int, int]] = []
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < seconds or rounds < 40:
        number = int(draw.integers(TASKS))
        task, fisher = f"task {number}", parts[number]
        averages[task].update(fisher)
        store.put(task, fisher, averages[task])
        other = fs.FisherStore(folder)  # another reader, who has nothing in memory yet
        read = other[task]
        assert torch.equal(read.sums["a.bias"], fisher.sums["a.bias"])
        again = other.ema(task)
        assert again is not None and again.steps == averages[task].steps
        while sum(store.nbytes(name) for name in store) > LIMIT:
            del store[store.least_recent()[0]]
            evicted += 1
        rounds += 1
        if rounds % 5 == 0:
            gc.collect()
            seen.append((now, own_memory(), descriptors()))
    hidden = [p.name for p in folder.rglob("*") if any(s.startswith(".") for s in p.parts[-2:])]
    return {"rounds": rounds, "evicted": evicted, "seen": seen, "hidden": hidden,
            "tasks": len(store)}  # fmt: skip


def check(found: dict) -> None:
    seen = found["seen"]
    assert found["evicted"] > 5 and 0 < found["tasks"] <= 3
    assert found["hidden"] == []
    handles = [count for *_, count in seen]
    assert max(handles) == min(handles)
    # What is used for the first time has been by the end of the first third. A leak shows in most
    # of the records (five rounds: a Fisher in each would be 1.5 MB), a table that the allocator or
    # the interpreter enlarges in one of them.
    settled = np.array([size for _, size, _ in seen[len(seen) // 3 :]])
    assert np.median(np.diff(settled)) < 15e3
    # One Fisher of 0.3 MB in twenty rounds would be 9 MB in ten minutes.
    assert settled[-1] - settled[0] < 5e6


# Would catch: a list that keeps every Fisher that was read; a file that each save leaves open; a
# folder that is set aside and never removed.
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what Linux tells")
def test_a_store_does_not_grow(tmp_path):
    check(soak(tmp_path / "store", 15.0))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what Linux tells")
def test_a_store_does_not_grow_for_long(tmp_path):
    found = soak(tmp_path / "store", float(os.environ.get("FISHERSCOPE_SOAK", "600")))
    (tmp_path / "seen.json").write_text(json.dumps(found))
    check(found)
