"""One writer at a time: a lock that the operating system takes back when its owner dies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fisherscope.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
msvcrt: Any
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None

# Windows lets nobody read what is locked: this byte lies behind everything that is written.
_BYTE = 2**20

WRITING, ESTIMATING = "writing", "estimating"
LOCKS = (f".{WRITING}.", f".{ESTIMATING}.")
"""How the names of lock files begin."""


@contextmanager
def only_one(place: Path, doing: str) -> Generator[None]:
    """Refuse to start while another process (or thread) does the same.

    A file with the owner beside ``place`` is locked, not merely there: whatever a killed
    owner leaves is free again, and no clock decides that.

    Args:
        place: What is written.
        doing: What is done to it, a word; different things don't exclude one another.

    Yields:
        Nothing.

    Raises:
        StoreError: If somebody else is at it; the message names process, host and age.
    """
    path = lock_file(place, doing)
    try:
        handle = _acquire(path, place, doing)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"can't lock {place}: {error}. Check that the disk has room, or choose a place that "
            "you may write to, on a file system that knows flock."
        ) from error
    try:
        yield
    finally:
        _remove(path, handle)


def lock_file(place: Path, doing: str) -> Path:
    """Where the owner is written down.

    Args:
        place: What is written.
        doing: What is done to it.

    Returns:
        A hidden file beside it.
    """
    return place.with_name(f".{doing}.{place.name}")


def is_held(path: Path) -> bool:
    """Whether the owner of a lock is alive.

    Args:
        path: The file of the lock, there or not.

    Returns:
        Whether somebody holds it now.
    """
    if not path.is_file():
        return False
    handle = os.open(path, os.O_RDWR if msvcrt else os.O_RDONLY)
    try:
        _lock(handle, shared=True)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(handle: int, *, shared: bool = False) -> None:
    """Lock a file until it is closed, or raise ``BlockingIOError`` at once."""
    if fcntl is not None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    assert msvcrt is not None
    os.lseek(handle, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(*error.args) from error


def _remove(path: Path, handle: int) -> None:
    if fcntl is not None:
        path.unlink(missing_ok=True)  # while it is still locked: nobody else's file is meant
        os.close(handle)
        return
    # Windows removes no file that is open, and none that somebody else has opened since.
    os.close(handle)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _acquire(path: Path, place: Path, doing: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            # The owner before may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                # A full disk has no room for the name; to make some, one has to be let in.
                with suppress(OSError):
                    _sign(handle)
                return handle
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise StoreError(
                f"{place} is busy ({doing}): {owner}. Two writers of one thing are not merged; "
                "wait for the other one or end it, or choose another place."
            ) from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _sign(handle: int) -> None:
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(owner).encode("ascii"))


def _owner(handle: int) -> str:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        owner = json.loads(os.read(handle, 4096))
        # A clock that was set back must not make an age negative.
        age = max(0.0, time.time() - float(owner["since"]))
        return f"process {owner['process']} on {owner['host']}, for {age:.0f} s"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process, just now"
