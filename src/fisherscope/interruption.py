"""Ctrl-C and SIGTERM wait for the end of a batch: what is saved then holds whole batches only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Noted:
    """The signal that has arrived, if any.

    Attributes:
        number: Of the signal; ``None`` as long as none has arrived.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def obey(self) -> None:
        """Do at last what the signal asked for.

        Raises:
            KeyboardInterrupt: For SIGINT.
            SystemExit: For SIGTERM, with 143: whatever has to be tidied up still is.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def whole_batches(active: bool) -> Generator[Noted]:
    """Note the first SIGINT or SIGTERM instead of stopping at once; a second one stops.

    Args:
        active: Whether there is anything to save. Signals can be handled only in the main
            thread; elsewhere nothing changes.

    Yields:
        The signal noted.
    """
    noted = Noted()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        insisting, noted.number = noted.number is not None, number
        if insisting:
            noted.obey()

    before = {}
    if active and threading.current_thread() is threading.main_thread():
        for number, usual in _USUAL.items():
            # Only Python's own handling is put off: who ignores a signal, or handles it, means it.
            if signal.getsignal(number) is usual:
                before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # One that came after the last batch, or while it was saved.
    noted.obey()
