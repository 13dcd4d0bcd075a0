"""Several processes, one estimate: what the ranks of ``torch.distributed`` say to one another.

Nothing is said while a batch is in flight. After each round of batches the ranks exchange how it
went, so that an error, a signal or a death on one of them ends all of them. Who fails where the
others wait for something else leaves its error in the process group's store, and cuts them off.
"""

from __future__ import annotations

import base64
import pickle
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fisherscope.errors import RankError

T = TypeVar("T")

JOIN_MINUTES = 10.0
"""How long ranks wait for one another before anything has begun."""

# Numbers summed in one message.
_BUCKET = 2**23
_groups: dict[int, Any] = {}
_alone = ContextVar("alone", default=False)


class Ranks:
    """The processes that share an estimate: one, or all of the default process group.

    Args:
        together: Use the process group, if there is one.

    Attributes:
        rank: Number of this process.
        world: How many there are.
        torn: Whether this rank has failed where others wait for something else, or has lost them:
            no message can be sent any more.
    """

    torn = False

    def __init__(self, together: bool = True):
        self.rank, self.world = 0, 1
        self._ways: list[Any] = []
        together = together and not _alone.get()
        if together and dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if self.world > 1:
            self._group = _gloo()
            self._ways = [self._group]
            self._meet()
            said = self.each(lambda: uuid.uuid4().hex)
            self._grave = f"fisherscope/{said[0]}"  # where the first error lies

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def each(self, call: Callable[[], T]) -> list[T]:
        """Do something on every rank; an error on one is raised on all, that of the lowest rank.

        Args:
            call: Done here, on this rank; what it returns is pickled.

        Returns:
            What it returned, rank by rank. If a rank has died, :class:`RankError` is raised.
        """
        if self.world == 1:
            return [call()]
        error: BaseException | None = None
        value: T | None = None
        try:
            value = call()
        except BaseException as caught:  # what ends this rank has to end the others too
            error = caught
            if self.torn:
                raise
        said: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(said, (_portable(error, self.rank), value), group=self._group)
        except RuntimeError as lost:
            raise self._end(error or lost) from lost
        for rank, (theirs, _) in enumerate(said):
            if theirs is not None:
                raise error if rank == self.rank and error is not None else theirs
        return [value for _, value in said]

    def once(self, call: Callable[[], T]) -> T:
        """Do something on the first rank only.

        Args:
            call: Done there; what it returns is pickled.

        Returns:
            What it returned, on every rank. An error is raised on all.
        """
        return self.each(lambda: call() if self.first else None)[0]  # type: ignore[return-value]

    @contextmanager
    def in_step(self, active: bool = True) -> Generator[None]:
        """Do what sends messages of its own, which all ranks have to send together.

        Args:
            active: Whether it does. Default: ``True``.

        Yields:
            Nothing.

        An error in it is raised on all ranks, the first if there are several; and
        :class:`RankError` if another rank is lost without one.
        """
        try:
            yield
        except BaseException as error:
            if not active or self.world == 1:
                raise
            first = self._end(error)
            if first is error:
                raise
            raise first from error

    def through(self, groups: Iterable[Any]) -> None:
        """Say where else messages are sent ``in_step``.

        Args:
            groups: Process groups, such as those of a sharded model's mesh.
        """
        self._ways = list({id(group): group for group in [*self._ways, *groups]}.values())

    def least(self, number: int) -> int:
        """The least of one number of each rank; a few bytes.

        Args:
            number: This rank's.

        Returns:
            The same on every rank.
        """
        if self.world == 1:
            return number
        told = torch.tensor(number)
        with self.in_step():
            dist.all_reduce(told, op=dist.ReduceOp.MIN, group=self._group)
        return int(told)

    def sum(self, tensors: Iterable[Tensor], to: int | None = None) -> None:
        """Replace tensors by their sums over all ranks, to the same bits everywhere.

        Args:
            tensors: The same shapes and types in the same order on every rank; changed in
                place.
            to: The one rank that gets the sums, while the tensors of the others are spoilt.
                Default: ``None``, all get them.

        If a rank has died, :class:`RankError` is raised.
        """
        if self.world == 1:
            return
        with self.in_step():
            for bucket in _buckets(tensors):
                flat = torch.cat([part.cpu() for part in bucket])
                if to is None:
                    dist.all_reduce(flat, group=self._group)
                else:
                    dist.reduce(flat, dst=to, group=self._group)
                for part, summed in zip(bucket, flat.split([len(p) for p in bucket]), strict=True):
                    part.copy_(summed)

    def _meet(self) -> None:
        wait = timedelta(minutes=JOIN_MINUTES)
        try:
            dist.monitored_barrier(group=self._group, timeout=wait, wait_all_ranks=self.first)
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} has not met all {self.world} ranks in the same call, for which "
                f"it waits {JOIN_MINUTES:g} minutes at most ({_line(error)}). Call it on every "
                "rank, or pass distributed=False to work alone; a process group in which an "
                "earlier call has failed may have to be made anew."
            ) from error

    def _end(self, error: BaseException) -> BaseException:
        """Tell the others of an error, wherever they wait; the first of all is returned."""
        if self.torn:
            return error
        self.torn = True
        if _is_loss(error):
            error = RankError(
                f"rank {self.rank} has lost another rank ({_line(error)}): look at what the others "
                "said last. The same call goes on from the last checkpoint."
            )
        first = self._left_first(error)
        for group in self._ways:
            _cut(group)
        return first

    def _left_first(self, error: BaseException) -> BaseException:
        """Leave an error for those that are cut off next; if one is there already, return that."""
        mine = base64.b64encode(pickle.dumps((self.rank, _portable(error, self.rank)))).decode()
        try:
            there = dist.distributed_c10d._get_default_store().compare_set(self._grave, "", mine)
        except RuntimeError as lost:  # it was with a rank that has died
            del lost
            return error
        rank, first = pickle.loads(base64.b64decode(there))
        return error if rank == self.rank else first


@contextmanager
def alone() -> Generator[None]:
    """Do what other ranks don't: they are not waited for inside ``with``.

    Yields:
        Nothing.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of ``DistributedDataParallel``, whose forward pass waits for other ranks.

    Args:
        model: Any module.

    Returns:
        The module itself, or the one inside.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def _gloo() -> Any:
    """A group that sends from the CPU: what is exchanged is small, or on its way to a file."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    world = id(dist.group.WORLD)
    if world not in _groups:
        _groups.clear()
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def _is_loss(error: BaseException) -> bool:
    """Whether an error says no more than that a message can't be sent or received."""
    said = str(error).lower()
    torn = "gloo" in said or "caused pair closure" in said
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and torn)


def _cut(group: Any) -> None:
    """End what others wait for in a group.

    Gloo has no ``abort``, but closes all connections of a group where a wait is in vain.
    """
    other = next((r for r in dist.get_process_group_ranks(group) if r != dist.get_rank()), None)
    if other is not None:
        with suppress(RuntimeError):
            never = dist.irecv(torch.empty(1), src=other, group=group)
            assert never is not None
            never.wait(timedelta(milliseconds=1))


def _portable(error: BaseException | None, rank: int) -> BaseException | None:
    if error is None:
        return None
    if not isinstance(error, Exception):
        return type(error)(*error.args)
    try:
        again = pickle.loads(pickle.dumps(error))  # what cannot be read again is not sent
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception as unreadable:
        del unreadable
    return RankError(f"rank {rank} raised {type(error).__name__}: {_line(error)}")


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Flat views of one type, a bounded number of entries at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        for part in tensor.view(-1).split(_BUCKET):
            full = sum(map(len, bucket)) + len(part) > _BUCKET
            if bucket and (full or bucket[0].dtype != part.dtype):
                yield bucket
                bucket = []
            bucket.append(part)
    if bucket:
        yield bucket


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
