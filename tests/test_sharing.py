"""One store, several processes: some read while one writes, and no two write one task."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fisherscope.errors import StoreError
from fisherscope.store import FisherStore
from fisherscope.structures import save
from oracles.processes import Child
from structures.fishers import build, same_bits, scores

SECONDS = 1.5


def version(number: int):
    """Fishers of very different sizes, so that files of two of them don't fit together."""
    kind = number % 2
    return build(scores([str(i) for i in range(1 + 40 * kind)], seed=kind))


def write(folder: Path) -> int:
    store, count, end = FisherStore(folder), 0, time.monotonic() + SECONDS
    while count < 3 or time.monotonic() < end:
        store["math"] = version(count)
        count += 1
        time.sleep(0.02)  # who writes without a pause is never read
    return count


def read(folder: Path) -> set[int]:
    """Every look is at one whole Fisher, bit by bit."""
    written = [version(0), version(1)]
    seen, end = set(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        store = FisherStore(folder)
        assert list(store) == ["math"]
        found = store["math"]
        assert any(same_bits(found, one) for one in written)
        seen.add(len(found.ledger))
    return seen


# Would catch: a reader that sees no task between two renames, or that verifies one Fisher and
# reads another: files are looked at twice, and the folder may be replaced in between.
def test_readers_see_whole_fishers_while_one_writes(tmp_path):
    FisherStore(tmp_path)["math"] = version(0)
    writer = Child(write, tmp_path)
    readers = [Child(read, tmp_path) for _ in range(2)]
    seen = [reader.value() for reader in readers]
    assert writer.value() > 2
    assert all(seen)
    assert [p.name for p in tmp_path.iterdir()] == ["math"]


def slowly(folder: Path) -> None:
    """Write, and stay in the middle of it until killed."""
    import fisherscope.structures.io as io

    def wait(*_: object, **__: object) -> None:
        (folder / "writing").touch()
        time.sleep(100)

    io.seal = wait
    FisherStore(folder)["math"] = version(1)


# Would catch: two writers whose files are mixed, the later of whom silently wins; a message that
# does not say who is at it; a lock that a dead writer keeps.
def test_a_second_writer_of_one_task_is_refused(tmp_path):
    FisherStore(tmp_path)["math"] = version(0)
    writer = Child(slowly, tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "writing").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    store = FisherStore(tmp_path)
    said = rf"math is busy \(writing\): process {writer.process.pid} on .*, for \d+ s"
    with pytest.raises(StoreError, match=said):
        store["math"] = version(1)
    with pytest.raises(StoreError, match="busy"):
        del store["math"]
    store["code"] = version(1)  # another task is nobody else's business
    assert len(FisherStore(tmp_path)["math"].ledger) == len(version(0).ledger)
    writer.end()
    store["math"] = version(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code", "math", "writing"]


# Would catch: an age computed from a clock that was set back, and a lock broken or kept by it.
@pytest.mark.parametrize("hours", [-1000, 1000])
def test_a_clock_that_jumps_decides_nothing(tmp_path, monkeypatch, hours):
    from fisherscope.structures import locks

    place = tmp_path / "math"
    with locks.only_one(place, "writing"):
        jumped = time.time() + 3600 * hours
        monkeypatch.setattr(locks.time, "time", lambda: jumped)
        with pytest.raises(StoreError, match=r"for \d+ s"):
            save(version(0), place)
    save(version(0), place)
    assert os.listdir(tmp_path) == ["math"]
