"""Other processes: some that are killed, some that work together.

All are forked from one server that has imported what takes long, so each starts in a fraction of
a second. Everything that waits has a deadline.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

_HEAVY = [
    "torch",
    "torch.distributed",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "fisherscope",
]
# Generous: on a loaded machine a process may wait long for its turn.
DEADLINE = 120.0


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    return context


def _child(pipe: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        answer: tuple[str, Any] = ("returned", function(*arguments))
    except BaseException as error:
        answer = ("raised", (type(error).__name__, str(error), traceback.format_exc()))
    pipe.send(answer)
    pipe.close()


class Child:
    """A function running in a process of its own.

    ``outcome`` is ``("returned", value)``, ``("raised", (class, message, traceback))`` or
    ``("died", exit code)``.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        context = _context()
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_child, args=(theirs, function, arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def outcome(self, deadline: float = DEADLINE) -> tuple[str, Any]:
        try:
            if not wait([self._pipe], deadline):
                raise AssertionError(f"a process has not ended within {deadline} s: it hangs")
            try:
                answer = self._pipe.recv()
            except EOFError:
                self.process.join(deadline)
                return "died", self.process.exitcode
            self.process.join(deadline)
            return answer
        finally:
            self.end()

    def value(self, deadline: float = DEADLINE) -> Any:
        kind, what = self.outcome(deadline)
        assert kind == "returned", what if kind == "died" else what[2]
        return what

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)
        self._pipe.close()


def ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """Run ``function`` on each rank of a gloo group; their outcomes, rank by rank."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        children = [
            Child(_ranked, meeting, rank, world, function, arguments) for rank in range(world)
        ]
        try:
            return [child.outcome() for child in children]
        finally:
            for child in children:
                child.end()


def values(outcomes: list[tuple[str, Any]]) -> list[Any]:
    for kind, what in outcomes:
        assert kind == "returned", what if kind == "died" else what[2]
    return [what for _, what in outcomes]


def _ranked(
    meeting: str, rank: int, world: int, function: Callable[..., Any], arguments: Sequence[Any]
) -> Any:
    import torch.distributed as dist

    deadline = timedelta(seconds=DEADLINE / 2)
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=deadline
    )
    try:
        return function(rank, *arguments)
    finally:
        dist.destroy_process_group()


def split(model: Any, blocks: Sequence[Any] = (), replicas: int = 1) -> Any:
    """Shard a model over the ranks of the process group, some of its modules by themselves."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = dist.get_world_size()
    if replicas == 1:
        mesh = init_device_mesh("cpu", (world,))
    else:
        shape, names = (replicas, world // replicas), ("replicas", "shards")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)
