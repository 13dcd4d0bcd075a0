"""How long a piece of work takes, and how much memory at most."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Footprint:
    """What the work inside ``with`` has taken.

    On a CUDA device memory is what torch has allocated there. On the CPU it is the growth of the
    resident set, in which freed memory that the allocator keeps counts too; it is known on Linux
    only.

    Args:
        model: Tells the device.

    Attributes:
        seconds: From beginning to end.
        bytes: Most bytes at once beside what was there at the beginning; ``None`` if unknown.
    """

    def __init__(self, model: nn.Module):
        self._device = next(model.parameters()).device
        self.seconds = 0.0
        self.bytes: int | None = None

    def __enter__(self) -> Footprint:
        self._start = time.perf_counter()
        self._before = self._reset()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        peak = self._peak()
        if peak is not None and self._before is not None:
            self.bytes = max(0, peak - self._before)

    def _reset(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        try:
            _CLEAR.write_text("5")  # the kernel's high-water mark of this process starts anew
        except OSError:
            return None
        return _status("VmRSS")

    def _peak(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM") if self._before is not None else None


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None
