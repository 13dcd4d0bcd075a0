"""Peak memory of one method, read from the kernel in a process of its own."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

# Every block from 64 KiB on gets its own mapping, so that freed tensors leave the resident set
# at once and the peak is that of live memory, not of the allocator's free list.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


def resting() -> int:
    """Resident bytes now, after the garbage is gone."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def peak_above(rest: int, run: Callable[[], object]) -> int:
    """The highest resident bytes while ``run`` runs, above ``rest``."""
    # Resets the kernel's high-water mark of this process to its present size.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return max(0, _status("VmHWM") - rest)
