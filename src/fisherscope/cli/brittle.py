"""``fisherscope brittle``: does one model break sooner than another under the same fine-tuning?"""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_options
from fisherscope.cli.studying import leave, lesson, lesson_config, named, replayable
from fisherscope.errors import ConfigError
from fisherscope.metrics.study_run import begin_study
from fisherscope.studies.brittleness import brittleness
from fisherscope.studies.brittleness.request import RATES, SEEDS

# Hidden, so that a folder in which nothing else is left yet is still an empty one.
RUNS = ".runs"
HELD_OUT = "_held_out"


@click.command("brittle", cls=ClearCommand)
@click.option(
    "--compare",
    multiple=True,
    required=True,
    metavar="NAME=PLACE",
    help="A model; repeat it. The others are compared with the first.",
)
@click.option(
    "--learn", required=True, metavar="NAME=FILE", help="The new task: rows to be learnt."
)
@click.option(
    "--held-out",
    metavar="FILE",
    help="Rows of the new task to measure it on.  [default: half of the others]",
)
@run_options
@click.option("--out", help="Folder for everything the study leaves: numbers, tables, report.")
@click.option(
    "--rate",
    "rates",
    type=float,
    multiple=True,
    help=f"Learning rate that the search begins with; repeat it.  [default: {len(RATES)} from "
    f"{RATES[0]:g} to {RATES[-1]:g}]",
)
@click.option("--share", type=float, default=0.8, show_default=True, help="Of what is attainable.")
@click.option("--steps", type=int, default=40, show_default=True, help="Steps of every run.")
@click.option("--batch-rows", type=int, default=8, show_default=True, help="Rows per step.")
@click.option("--every", type=int, default=2, show_default=True, help="Steps between measurements.")
@click.option("--seeds", type=int, default=len(SEEDS), show_default=True, help="How many.")
@click.option("--looks", type=int, default=2, show_default=True, help="At Fisher and curvature.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def brittle_command(
    compare: tuple[str, ...],
    learn: str,
    held_out: str | None,
    rates: tuple[float, ...],
    seeds: int,
    quiet: bool,
    share: float,
    steps: int,
    batch_rows: int,
    every: int,
    looks: int,
    **given: Any,
) -> None:
    """Tune models alike on a new task and compare what the old ones lose at equal progress.

    Leaves results.json, tables and report.html in RUN; interrupted, the same command
    goes on from the last finished run.
    """  # noqa: DOC501 (click shows this text)
    if given.get("model"):
        raise ConfigError("brittle takes --compare, not --model")
    if len(compare) < 2:
        raise ConfigError("one --compare only; give at least two, each NAME=PLACE")
    name, file = lesson(learn)
    measured = f"{name}{HELD_OUT}"
    new = {name: file} if held_out is None else {name: file, measured: held_out}
    run = begin_study(lesson_config(new, **{**given, "model": compare}))
    files = run.config.tasks
    run = replayable(
        run,
        compare=named(run.config.model),
        learn=f"{name}={files[name]}",
        held_out=files.get(measured),
    )
    mark_running("Finished runs are kept; the same command goes on from them.")
    fisher = run.config.fisher
    options = {
        "rates": rates or RATES,
        "share": share,
        "steps": steps,
        "batch_rows": batch_rows,
        "every": every,
        "seeds": tuple(range(fisher.seed + 1, fisher.seed + 1 + seeds)),
        "looks": looks,
    }
    found = brittleness(
        run.models,
        run.tasks[name],
        {task: rows for task, rows in run.tasks.items() if task not in new},
        held_out=run.tasks.get(measured),
        likelihood=fisher.likelihood,
        draws=fisher.draws,
        seed=fisher.seed,
        folder=run.out / RUNS,
        progress=not quiet,
        **options,
    )
    record = {"learn": name, **options, "draws": fisher.draws, "seed": fisher.seed}
    leave(run, "brittleness", "Brittleness under fine-tuning", found, record, quiet=quiet)
