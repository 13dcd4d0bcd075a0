"""How many bytes of tensors are alive, at most, while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside ``with``, as long as they live; not those in files.

    The allocator's statistics exist on some devices only, and the resident memory of a process
    grows by what the allocator keeps as well. What a kernel needs for itself is not seen.

    Args:
        known: Tensors whose memory does not count, such as a model's parameters.

    Attributes:
        peak: Most bytes that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        # Storage to the bytes that are counted of it; None: those of what does not count.
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in known:
            for part in _parts(tensor):
                self._seen[part.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D102
        returned = func(*args, **(kwargs or {}))
        for value in tree_leaves(returned):
            if isinstance(value, torch.Tensor):
                for part in _parts(value):
                    self._see(part.untyped_storage())
        return returned

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            return
        if storage.device.type == "cpu" and storage.filename is not None:
            return  # in a file
        if storage not in self._seen:
            counted = self._seen[storage] = [0]
            weakref.finalize(storage, self._gone, counted).atexit = False
        if self._count(storage) and self.now > self.peak:
            # fully_shard lets go of memory by making a storage smaller, which no operator shows.
            for other in list(self._seen):
                self._count(other)
            self.peak = max(self.peak, self.now)

    def _count(self, storage: torch.UntypedStorage) -> bool:
        """Count what a storage has now, and say whether that is more than before."""
        counted = self._seen[storage]
        if counted is None:
            return False
        more = storage.nbytes() - counted[0]
        self.now += more
        counted[0] += more
        return more > 0

    def _gone(self, counted: list[int]) -> None:
        self.now -= counted[0]


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with memory of their own: those inside of a sharded one."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        if isinstance(inner, torch.Tensor):
            yield from _parts(inner)
