"""``fisherscope percolate``: where a model breaks when its weights are removed."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.arguments import check_whole
from fisherscope.cli.analyze import say
from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.cli.studying import leave, replayable
from fisherscope.data import halves
from fisherscope.estimation import estimate
from fisherscope.metrics.estimating import estimate_options
from fisherscope.metrics.study_run import StudyRun, begin_study, keep_config
from fisherscope.studies.percolation import Percolation, compare_percolation, percolation
from fisherscope.studies.percolation.orders import ORDERS
from fisherscope.studies.percolation.removal import REMOVALS
from fisherscope.studies.percolation.request import WATCHED, PercolationOptions
from fisherscope.studies.percolation.study import OPTIONS
from fisherscope.studies.percolation.units import LEVELS

MEASUREMENTS = "evaluations"
# Every token of every watched row is passed over some hundred times.
MAX_LENGTH = 64


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
    "--points", type=int, default=OPTIONS.points, show_default=True,
    help="Fractions per curve, more of them where it bends.",
)  # fmt: skip
@click.option(
    "--fraction", "fractions", multiple=True, type=float,
    help="A fraction to measure instead, from 0 to 1; repeat for more.",
)  # fmt: skip
@click.option(
    "--watch", type=int, default=WATCHED, show_default=True,
    help="Rows of each task that are watched, of the half that its Fisher has not seen.",
)  # fmt: skip
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
    quiet: bool,
    watch: int,
    levels: tuple[str, ...],
    orders: tuple[str, ...],
    fractions: tuple[float, ...],
    **given: Any,
) -> None:
    """Remove more and more of a model, in several orders, and watch when each task is lost.

    The Fisher of each task is estimated on one half of its rows; the other half is watched.
    Several models, each as --model NAME=PLACE, are compared on the same rows. Sequences are cut
    at 64 tokens unless --max-length says otherwise. Interrupted, the same command goes on where
    it stopped.
    """  # noqa: DOC501 (click shows this text)
    names = ("removal", "repetitions", "points", "side", "candidates")
    options = {name: given.pop(name) for name in names}
    options["structure"] = given.pop("graph")
    options |= {"levels": levels or OPTIONS.levels, "orders": orders or OPTIONS.orders}
    config = run_config({"max_length": MAX_LENGTH}, **given)
    options |= {"fractions": fractions or None, "seed": config.fisher.seed}
    PercolationOptions(**options)  # refuses what is out of range before anything is read
    check_whole("--watch", watch, low=1)
    run = replayable(begin_study(config))
    keep_config(run)  # so that the same command may go on in a folder that holds measurements
    mark_running("Finished measurements are kept; the same command goes on from there.")
    studies = {name: _study(run, name, options, watch=watch, quiet=quiet) for name in run.models}
    found = compare_percolation(studies) if len(studies) > 1 else studies[next(iter(studies))]
    leave(run, "percolation", "Percolation", found, {**options, "watch": watch}, quiet=quiet)


def _study(
    run: StudyRun, name: str, options: dict[str, Any], *, watch: int, quiet: bool
) -> Percolation:
    model, settings = run.models[name], run.config.fisher
    several = len(run.models) > 1
    fishers, watched = {}, {}
    for task, rows in run.tasks.items():
        seen, watched[task] = halves(rows)
        if not quiet:
            say(f"Fisher of {task}" + (f", {name}" if several else ""))
        given = {**estimate_options(settings), "halves": False}
        fishers[task] = estimate(model, seen, progress=not quiet, **given)
    return percolation(
        model,
        fishers,
        watched,
        likelihood=settings.likelihood,
        batch_size=settings.batch_size,
        max_examples=watch,
        folder=run.out / MEASUREMENTS / (name if several else ""),
        progress=not quiet,
        on_plan=None if quiet else lambda plan: say(str(plan)),
        name=name,
        **options,
    )
