"""``fisherscope percolate``: where a model breaks when its weights are removed."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.analyze import say
from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.cli.studying import leave
from fisherscope.data import halves
from fisherscope.errors import ConfigError
from fisherscope.estimation import estimate
from fisherscope.metrics.estimating import estimate_options
from fisherscope.metrics.study_run import begin_study
from fisherscope.studies.percolation import percolation
from fisherscope.studies.percolation.orders import ORDERS
from fisherscope.studies.percolation.removal import REMOVALS
from fisherscope.studies.percolation.study import OPTIONS
from fisherscope.studies.percolation.units import LEVELS

MEASUREMENTS = "evaluations"


@click.command("percolate", cls=ClearCommand)
@run_options
@click.option("--out", help="Folder for everything the study leaves: numbers, tables, report.")
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.Choice(LEVELS),
    help="What is removed; repeat for more.  [default: weight]",
)
@click.option(
    "--order",
    "orders",
    multiple=True,
    type=click.Choice(ORDERS),
    help="In which order; repeat for more.  [default: all]",
)
@click.option(
    "--removal", type=click.Choice(REMOVALS), default=OPTIONS.removal, show_default=True,
    help="What is done to the weights.",
)  # fmt: skip
@click.option(
    "--repetitions", type=int, default=OPTIONS.repetitions, show_default=True,
    help="Draws of random orders.",
)  # fmt: skip
@click.option(
    "--points", type=int, default=OPTIONS.points, show_default=True, help="Fractions per curve."
)
@click.option(
    "--side", type=int, default=OPTIONS.side, show_default=True,
    help="Fractions and lengths of the phase diagram; 0 leaves it out.",
)  # fmt: skip
@click.option(
    "--candidates", type=int, default=OPTIONS.candidates, show_default=True,
    help="Units per order that are removed one by one; 0 leaves it out.",
)  # fmt: skip
@click.option(
    "--graph/--no-graph", default=True, show_default=True,
    help="Whether the graph of neurons is looked at.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No plan, no progress bars, no summary.")
def percolate_command(
    quiet: bool, levels: tuple[str, ...], orders: tuple[str, ...], **given: Any
) -> None:
    """Remove more and more of a model, in several orders, and watch when each task is lost.

    The Fisher of each task is estimated on one half of its rows; the other half is watched.
    Interrupted, the same command goes on where it stopped.
    """  # noqa: DOC501 (click shows this text)
    names = ("removal", "repetitions", "points", "side", "candidates")
    options = {name: given.pop(name) for name in names}
    options["structure"] = given.pop("graph")
    options |= {"levels": levels or OPTIONS.levels, "orders": orders or OPTIONS.orders}
    config = run_config(**given)
    if not isinstance(config.model, str):
        raise ConfigError("percolate takes one --model; study several one by one")
    run = begin_study(config)
    mark_running("Finished measurements are kept; the same command goes on from there.")
    fishers, watched = {}, {}
    for task, rows in run.tasks.items():
        seen, watched[task] = halves(rows)
        if not quiet:
            say(f"Fisher of {task}")
        settings = {**estimate_options(run.config.fisher), "halves": False}
        fishers[task] = estimate(run.model, seen, progress=not quiet, **settings)
    found = percolation(
        run.model,
        fishers,
        watched,
        seed=run.config.fisher.seed,
        likelihood=run.config.fisher.likelihood,
        batch_size=run.config.fisher.batch_size,
        folder=run.out / MEASUREMENTS,
        progress=not quiet,
        on_plan=None if quiet else lambda plan: say(str(plan)),
        **options,
    )
    record = {**options, "seed": run.config.fisher.seed}
    leave(run, "percolation", "Percolation", found, record, quiet=quiet)
