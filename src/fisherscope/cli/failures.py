"""What the user sees when something goes wrong: one clear line and an exit code."""

from __future__ import annotations

import time
from typing import Any

import click

from fisherscope.cli.processes import joined, speaks
from fisherscope.errors import FisherscopeError, RankError

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130
_PATIENCE = 3.0
_RUNNING = "fisherscope.running"
_TRACEBACK = "fisherscope.traceback"
_RESUME = "fisherscope.resume"


def mark_running(hint: str | None = None) -> None:
    """Say that the input was fine and the work has begun: from here a failure exits with 1.

    Args:
        hint: How to go on after an interruption, printed if one comes.
    """
    meta = click.get_current_context().meta
    meta[_RUNNING] = True
    meta[_RESUME] = hint


class ClearCommand(click.Command):
    """A command that reports failures in one line, with a traceback only if asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--traceback"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=lambda ctx, _, value: ctx.meta.update({_TRACEBACK: value}),
                help="Show the Python traceback of an error.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn whatever it raises into a message and an exit code."""  # noqa: DOC201, DOC501
        try:
            with joined(str(ctx.info_name)):
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            hint = ctx.meta.get(_RESUME)
            if speaks():
                click.echo("\nInterrupted." + (f" {hint}" if hint else ""), err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise
        except Exception as error:
            if ctx.meta.get(_TRACEBACK):
                raise
            # Of several processes all end with the same error, unless they have lost one another.
            if speaks() or not _deliberate(error) or isinstance(error, RankError):
                click.echo(f"Error: {_message(error)}", err=True)
            else:
                # The launcher ends all as soon as one has failed: the first has to speak before.
                time.sleep(_PATIENCE)
            ctx.exit(FAILED if ctx.meta.get(_RUNNING) or not _deliberate(error) else BAD_INPUT)


class ClearGroup(click.Group):
    """A group whose commands are all of :class:`ClearCommand`."""

    command_class = ClearCommand


def _deliberate(error: Exception) -> bool:
    return isinstance(error, FisherscopeError)


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())
    if _deliberate(error):
        return text
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return f"out of memory: {text[:200]}; use a smaller --batch-size or --max-length"
    return f"unexpected {type(error).__name__}: {text[:500]}; --traceback shows where"
