"""Kill a process at any of its moments, counted in calls of functions rather than in seconds.

So the moment is the same on a fast machine and on a loaded one, and can be anywhere: in a batch,
in the middle of a file, between two renames.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass
class Moments:
    """What a run is made of.

    ``writing`` are the numbers of the moments in which something is being saved.
    """

    count: int = 0
    writing: list[int] = field(default_factory=list)


def moments_of(run: Callable[[], Any], *, die_at: int | None = None) -> Moments:
    """Run, and count; with ``die_at`` the process is killed at that moment."""
    found, depth = Moments(), 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal depth
        del argument
        found.count += 1
        if found.count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if frame.f_code.co_name == "write_folder":
            depth += {"call": 1, "return": -1}.get(event, 0)
        if depth and die_at is None:
            found.writing.append(found.count)

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found
