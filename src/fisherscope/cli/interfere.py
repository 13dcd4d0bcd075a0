"""``fisherscope interfere``: what a step for one task does to the others."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.analyze import say
from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.cli.studying import leave, replayable
from fisherscope.metrics.study_run import begin_study
from fisherscope.studies.interference import interference
from fisherscope.studies.interference.interference import SCALES, SMALL, STRUCTURES


@click.command("interfere", cls=ClearCommand)
@run_options
@click.option("--out", help="Folder for everything the study leaves: numbers, tables, report.")
@click.option(
    "--scale",
    "scales",
    type=float,
    multiple=True,
    help=f"Multiple of each task's own step; repeat for more.  [default: {len(SCALES)} sizes]",
)
@click.option("--small", type=float, default=SMALL, show_default=True, help="Largest small step.")
@click.option("--heads/--no-heads", default=True, show_default=True, help="Split by head.")
@click.option(
    "--conflicts/--no-conflicts", default=True, show_default=True, help="Compare gradients."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def interfere_command(
    quiet: bool,
    scales: tuple[float, ...],
    small: float,
    heads: bool,
    conflicts: bool,
    **given: Any,
) -> None:
    """Predict and measure what each task's step costs every other task.

    Leaves results.json, tables and report.html in RUN.
    """
    run = replayable(begin_study(run_config(**given)))
    mark_running("Nothing is kept of an unfinished study; run it again.")
    fisher = run.config.fisher
    options = {"scales": scales or SCALES, "small": small, "heads": heads, "conflicts": conflicts}
    if not quiet:
        say(f"{len(run.tasks)} tasks, {len(options['scales'])} sizes of step")
    found = interference(
        run.model,
        run.tasks,
        likelihood=fisher.likelihood,
        draws=fisher.draws,
        seed=fisher.seed,
        batch_size=fisher.batch_size,
        progress=not quiet,
        **options,
    )
    record = {**options, "structures": STRUCTURES, "draws": fisher.draws, "seed": fisher.seed}
    leave(run, "interference", "Interference between tasks", found, record, quiet=quiet)
