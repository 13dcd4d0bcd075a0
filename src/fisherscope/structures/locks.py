"""One writer at a time: a lock that the operating system takes back when its owner dies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fisherscope.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: it refuses to rename what is open, which is not the same
    fcntl = None

WRITING, ESTIMATING = "writing", "estimating"
LOCKS = (f".{WRITING}.", f".{ESTIMATING}.")
"""How the names of lock files begin."""


@contextmanager
def only_one(place: Path, doing: str) -> Generator[None]:
    """Refuse to start while another process (or thread) does the same.

    A file with the owner beside ``place`` is locked, not merely there: whatever a killed
    owner leaves is free again, and no clock decides that. Without ``fcntl`` (Windows) nothing
    is refused.

    Args:
        place: What is written.
        doing: What is done to it, a word; different things don't exclude one another.

    Yields:
        Nothing.

    Raises:
        StoreError: If somebody else is at it; the message names process, host and age.
    """
    if fcntl is None:
        yield
        return
    path = lock_file(place, doing)
    try:
        handle = _acquire(path, place, doing)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"can't lock {place}: {error}. Choose a place that you may write to, on a file system "
            "that knows flock."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


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
    if fcntl is None or not path.is_file():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _acquire(path: Path, place: Path, doing: str) -> int:
    assert fcntl is not None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
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
    os.pwrite(handle, json.dumps(owner).encode("ascii"), 0)


def _owner(handle: int) -> str:
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        # A clock that was set back must not make an age negative.
        age = max(0.0, time.time() - float(owner["since"]))
        return f"process {owner['process']} on {owner['host']}, for {age:.0f} s"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, just now"
