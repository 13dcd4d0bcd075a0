"""The command line: thin commands that parse, call and print."""

from __future__ import annotations

from importlib import import_module

import click

from fisherscope.cli.failures import ClearGroup
from fisherscope.preparation import VERSION

_COMMANDS = (
    "analyze",
    "brittle",
    "compare",
    "demo",
    "estimate",
    "forget",
    "interfere",
    "ls",
    "percolate",
    "plan",
    "remedy",
    "report",
    "validate",
)


class _Commands(ClearGroup):
    """Imports a command only when it is called, so that ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""  # noqa: DOC201
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, if there is one."""  # noqa: DOC201
        if cmd_name not in _COMMANDS:
            return None
        return getattr(import_module(f"fisherscope.cli.{cmd_name}"), f"{cmd_name}_command")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="fisherscope")
def main() -> None:
    """Fisher information of Hugging Face models: which weights carry what, and what a change costs.

    Start with `fisherscope demo --out runs/demo`, then run `fisherscope analyze` on your own
    model.
    """


__all__ = ["main"]
