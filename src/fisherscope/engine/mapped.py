"""Tensors in memory-mapped files without a name: the system brings and takes their pages."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_BLOCK = 2**24
_OPEN_FILES = Path("/proc/self/fd")
_DONTNEED = 4  # MADV_DONTNEED of Linux and macOS


def mapped(
    folder: Path, shape: tuple[int, ...], dtype: torch.dtype, content: Tensor | None = None
) -> Tensor:
    """A tensor in a file that is gone with it, or with the process.

    What can't be written raises ``OSError``.

    Args:
        folder: Where the file is.
        shape: The tensor's shape.
        dtype: Its type.
        content: What it is filled with. Default: ``None``, zeros.

    Returns:
        A tensor on the CPU; an empty one has no file.
    """
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    with _nameless(folder) as (file, path):
        # Zeros are written, too: a full disk is an error here, and the end of the process when a
        # page is touched that has no place on it.
        if content is None:
            _fill(file, count * dtype.itemsize)
        else:
            _write(file, content)
        file.flush()
        return torch.from_file(path, shared=True, size=count, dtype=dtype).view(shape)


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is in a file rather than in memory.

    Args:
        tensor: Any tensor.

    Returns:
        Whether :func:`mapped` made it.
    """
    return tensor.device.type == "cpu" and tensor.untyped_storage().filename is not None


def release(tensor: Tensor) -> None:
    """Take the pages of a mapped tensor out of the process; they come back when they are used.

    The system would do so itself when memory is short, but they count as the process's until then.

    Args:
        tensor: Any tensor; nothing happens to one in memory.
    """
    if not is_mapped(tensor) or os.name == "nt":
        return
    storage = tensor.untyped_storage()
    place, size = ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())
    ctypes.CDLL(None).madvise(place, size, _DONTNEED)


def trim() -> None:
    """Let the C library give back what was freed: it keeps blocks of up to 32 MB for later."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # of another library than glibc
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def _nameless(folder: Path) -> Generator[tuple[BinaryIO, str]]:
    """A new file, and a path by which it can be opened inside ``with``."""
    if _OPEN_FILES.is_dir():
        # Linux never gives it a name, so that nothing is left whenever the process is killed.
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file, str(_OPEN_FILES / str(file.fileno()))
        return
    handle, path = tempfile.mkstemp(prefix=".fisherscope-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, path
    finally:
        try:
            os.unlink(path)
        except PermissionError:  # Windows keeps a file that is mapped
            atexit.register(Path(path).unlink, missing_ok=True)


def _fill(file: BinaryIO, size: int) -> None:
    zeros = bytes(min(size, _BLOCK))
    for start in range(0, size, _BLOCK):
        file.write(zeros[: size - start])


def _write(file: BinaryIO, content: Tensor) -> None:
    for part in content.detach().reshape(-1).split(_BLOCK):
        file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
