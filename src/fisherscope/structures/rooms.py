"""Where sums live: in memory, on disk, or nowhere yet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fisherscope.engine.mapped import is_mapped, mapped, release
from fisherscope.errors import ParameterError, StoreError

Room = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]
"""Makes zeros of a shape and a type for a device."""


def memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in the memory of a device: a :data:`Room`.

    Args:
        shape: Their shape.
        dtype: Their type.
        device: The device.

    Returns:
        The zeros.
    """
    return torch.zeros(shape, dtype=dtype, device=device)


def nowhere(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without memory: a :data:`Room` for those who only want to know the sizes.

    Args:
        shape: Its shape.
        dtype: Its type.
        device: Of no matter.

    Returns:
        A tensor on the ``meta`` device.
    """
    del device
    return torch.empty(shape, dtype=dtype, device="meta")


def added(mine: Tensor, theirs: Tensor, room: Room) -> Tensor:
    """A sum in a room.

    Args:
        mine: A tensor.
        theirs: Another of the same shape.
        room: Where the sum is put.

    Returns:
        ``mine + theirs``.
    """
    if mine.numel() > 1 and not any(mine.stride()) and not any(theirs.stride()):
        return mine  # zeros in the place of what another rank keeps
    found = room(tuple(mine.shape), torch.result_type(mine, theirs), mine.device)
    torch.add(mine, theirs, out=found)
    for tensor in (mine, theirs, found):
        release(tensor)
    return found


class Disk:
    """A folder for sums that memory can't hold, see :func:`fisherscope.engine.mapped.mapped`.

    Args:
        folder: The folder; made when it is needed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def check(self, needed: int) -> None:
        """Make sure that there will be room.

        Args:
            needed: Bytes.

        Raises:
            StoreError: If the folder can't be written to.
            ParameterError: If its disk has less room.
        """
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free
        except OSError as error:
            raise StoreError(
                f"can't write to offload_folder {self.folder}: {error}. Choose another one."
            ) from error
        if free < needed:
            raise ParameterError(
                f"the sums take {needed:,} bytes on disk, but {self.folder} has room for {free:,}; "
                "make room, give offload_folder= on another disk, or leave parameters out"
            )

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros on disk, those of an accelerator in its own memory: a :data:`Room`.

        Args:
            shape: Their shape.
            dtype: Their type.
            device: The device that adds to them.

        Returns:
            The zeros.
        """
        if device.type != "cpu":
            return memory(shape, dtype, device)
        return self._mapped(shape, dtype)

    def kept(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the disk, if it isn't there.

        Args:
            tensor: Any tensor.

        Returns:
            Its equal on the CPU.
        """
        if is_mapped(tensor):
            release(tensor)
            return tensor
        return self._mapped(tuple(tensor.shape), tensor.dtype, tensor)

    def _mapped(
        self, shape: tuple[int, ...], dtype: torch.dtype, content: Tensor | None = None
    ) -> Tensor:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return mapped(self.folder, shape, dtype, content)
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"can't keep sums in {self.folder}: {error}. Make room, or give offload_folder= on "
                "another disk."
            ) from error
