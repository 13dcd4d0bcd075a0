"""Commands under torchrun: all processes estimate, the first one writes and speaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import click

from fisherscope.errors import ConfigError

TOGETHER = ("analyze", "estimate", "plan")
"""Commands that several processes can share."""


def started_together() -> int:
    """How many processes a launcher such as torchrun has started for this command.

    Returns:
        Their number; 1 without a launcher.
    """
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def speaks() -> bool:
    """Whether this process is the only one, or the first of several.

    Returns:
        Whether it says what is done.
    """
    return started_together() == 1 or os.environ["RANK"] == "0"


@contextlib.contextmanager
def joined(command: str) -> Generator[None]:
    """Form a process group of the processes that torchrun has started, if it has.

    All but the first say nothing: what goes wrong on any of them is raised on the first as well.

    Args:
        command: Name of the command.

    Yields:
        Nothing.

    Raises:
        ConfigError: If the command is for one process.
    """
    if started_together() == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not speaks():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        if command not in TOGETHER:
            raise ConfigError(
                f"{click.get_current_context().command_path} runs in one process: start it without "
                f"torchrun, which is for {', '.join(TOGETHER)}"
            )
        import torch  # noqa: PLC0415 (not needed by a command that is alone)
        import torch.distributed as dist  # noqa: PLC0415

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")
        stack.callback(_leave)
        yield


def _leave() -> None:
    import torch.distributed as dist  # noqa: PLC0415

    if dist.is_initialized():
        dist.destroy_process_group()
