"""Locks where there is no ``fcntl``: Windows' own, played by a stand-in (no Windows at hand)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from fisherscope.errors import StoreError
from fisherscope.structures import load, locks, save
from fisherscope.structures.folder import is_leftover
from structures.fishers import build, same_bits, scores


class Windows:
    """``msvcrt.locking``: one byte at the place of the file pointer, refused with ``OSError``.

    An open file description's lock (Linux) is like it in what counts: it excludes every other
    handle, of the same process too, and ends when the file is closed.
    """

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.places: set[int] = set()

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        self.places.add(os.lseek(handle, 0, os.SEEK_CUR))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error


@pytest.fixture
def windows(monkeypatch) -> Windows:
    real, opened = Path.unlink, os.open
    handles: dict[str, int] = {}

    def note(path, flags, *mode, **options):
        handle = opened(path, flags, *mode, **options)
        handles[str(path)] = handle
        return handle

    def unlink(self: Path, missing_ok: bool = False) -> None:
        handle = handles.get(str(self))
        if handle is not None and self.exists():
            try:
                same = os.path.samestat(os.fstat(handle), self.stat())
            except OSError:
                same = False
            if same:
                raise PermissionError(13, "the file is in use")
        real(self, missing_ok)

    fake = Windows()
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", fake)
    monkeypatch.setattr(locks.os, "open", note)
    monkeypatch.setattr(Path, "unlink", unlink)
    return fake


# Planted: nothing refused without fcntl, as it was before; a locked byte among those that say who
# owns the lock, which Windows then lets nobody read; a lock file removed before it is closed.
def test_a_second_writer_is_refused_on_windows(tmp_path, windows):
    place = tmp_path / "math"
    with locks.only_one(place, "writing"):
        assert locks.is_held(locks.lock_file(place, "writing"))
        said = rf"math is busy \(writing\): process {os.getpid()} on .*, for \d+ s"
        with pytest.raises(StoreError, match=said), locks.only_one(place, "writing"):
            pass
        with locks.only_one(place, "estimating"), locks.only_one(tmp_path / "code", "writing"):
            pass
        assert locks.lock_file(place, "writing").stat().st_size < min(windows.places)
    assert not os.listdir(tmp_path)
    with locks.only_one(place, "writing"):
        pass


def test_saving_and_loading_on_windows(tmp_path, windows):
    fisher = build(scores("abc"))
    for _ in range(2):
        save(fisher, tmp_path / "f")
    assert same_bits(load(tmp_path / "f"), fisher)
    assert os.listdir(tmp_path) == ["f"]
    left = tmp_path / ".writing.f"
    left.write_text("{}")
    assert is_leftover(left)
    save(fisher, tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
