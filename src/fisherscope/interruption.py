"""Ctrl-C waits for the end of a batch, so that what is saved holds whole batches only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def whole_batches(active: bool) -> Generator[Callable[[], bool]]:
    """Note the first SIGINT instead of raising at once; a second one raises.

    Args:
        active: Whether there is anything to save. Signals can be handled only in the main
            thread; elsewhere nothing changes.

    Yields:
        A function that tells whether SIGINT has arrived.
    """
    noted = False
    before = signal.getsignal(signal.SIGINT)
    # Only Python's own handling is put off: who ignores SIGINT, or handles it, means it.
    usual = before is signal.default_int_handler
    if not active or not usual or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            signal.default_int_handler(number, frame)
        noted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
