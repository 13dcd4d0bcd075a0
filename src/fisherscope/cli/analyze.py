"""``fisherscope analyze``: the main job."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.cli.validate import keep_record
from fisherscope.metrics.pipeline import analyze
from fisherscope.metrics.run_config import RunConfig
from fisherscope.metrics.run_folder import CONFIG, REPORT, writing
from fisherscope.report import summary, write_report


@click.command("analyze", cls=ClearCommand)
@run_options
@click.option("--out", help="Folder for everything the run leaves: numbers, tables, report.")
@click.option("--sparsity", type=float, help="Share pruned in the masks that are compared.")
@click.option(
    "--damage/--no-damage",
    "damage_enabled",
    default=None,
    help="Whether to predict and measure what a step for one task costs the others.",
)
@click.option("-q", "--quiet", is_flag=True, help="No plan, no progress bars, no summary.")
def analyze_command(quiet: bool, **given: Any) -> None:
    """Estimate each task's Fisher and report importance, overlap and damage.

    With several named models, each gets a run of its own inside RUN, and RUN itself a report
    that sets them side by side.

    Interrupted, the same command goes on where it stopped. RUN/config.yaml replays the run.
    """
    run_analysis(run_config(**given), quiet=quiet)


def run_analysis(config: RunConfig, *, quiet: bool = False) -> Path:
    """Run the main job and say where its report is.

    Args:
        config: The run; ``out`` must be given.
        quiet: Print nothing but the place of the report.

    Returns:
        The report.
    """
    bars(shown=not quiet)

    def on_plan(plans: dict[str, Any]) -> None:
        if not quiet:
            show_plans(plans)
        mark_running("Finished tasks are kept; the same command goes on from there.")

    def on_results(out: Path, results: dict[str, Any]) -> None:
        with writing(out / REPORT):
            write_report(results, out / REPORT)
        keep_record(out)
        if not quiet:
            click.echo()
            click.echo(summary(results))
            click.echo()
            click.echo(f"Report: {out / REPORT}")

    analyze(
        config,
        progress=not quiet,
        on_plan=on_plan,
        on_results=on_results,
        say=(lambda _: None) if quiet else say,
        command=command_line(),
    )
    out = Path(os.path.expanduser(config.out or "."))
    if quiet:
        click.echo(f"Report: {out / REPORT}")
    else:
        click.echo(f"Replay: fisherscope analyze --config {shlex.quote(str(out / CONFIG))}")
    return out / REPORT


def bars(*, shown: bool) -> None:
    """Show or hide the progress bars that transformers draws when it reads weights.

    Args:
        shown: Whether they are shown.
    """
    (enable_progress_bar if shown else disable_progress_bar)()


def say(line: str) -> None:
    """Say which step begins, on the channel of the progress bars.

    Args:
        line: The text.
    """
    click.echo(line, err=True)


def show_plans(plans: dict[str, Any]) -> None:
    """Print what is about to happen.

    Args:
        plans: Task name to plan.
    """
    for name, plan in plans.items():
        click.echo(f"Task {name}")
        click.echo(str(plan))
        click.echo()


def command_line() -> str:
    """The command that was typed.

    Returns:
        One line that a shell would take, starting with ``fisherscope``.
    """
    return shlex.join(["fisherscope", *sys.argv[1:]])
