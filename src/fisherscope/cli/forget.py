"""``fisherscope forget``: what fine-tuning has cost the old tasks."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.cli.studying import leave, named, replayable
from fisherscope.errors import ConfigError
from fisherscope.metrics.study_run import begin_study
from fisherscope.studies.forgetting import forgetting
from fisherscope.studies.forgetting.forgetting import POINTS, STRUCTURES, TUNED

BASE = "base"


@click.command("forget", cls=ClearCommand)
@click.option("--base", required=True, metavar="PLACE", help="The model before fine-tuning.")
@click.option("--tuned", required=True, metavar="PLACE", help="The model after.")
@click.option(
    "--checkpoints",
    multiple=True,
    metavar="NAME=PLACE",
    help="A model in between; repeat in the order of training.",
)
@run_options
@click.option("--out", help="Folder for everything the study leaves: numbers, tables, report.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def forget_command(
    base: str, tuned: str, checkpoints: tuple[str, ...], quiet: bool, **given: Any
) -> None:
    """Measure what each task has lost, beside what the base model predicts of it.

    Leaves results.json, tables and report.html in RUN.
    """
    _check(given)
    places = [f"{BASE}={base}", *checkpoints, f"{TUNED}={tuned}"]
    run = begin_study(run_config(**{**given, "model": tuple(places)}))
    (_, first), *middle, (_, last) = (place.split("=", 1) for place in named(run.config.model))
    run = replayable(run, base=first, tuned=last, checkpoints=["=".join(place) for place in middle])
    mark_running("Nothing is kept of an unfinished study; run it again.")
    fisher = run.config.fisher
    between = {n: m for n, m in run.models.items() if n not in {BASE, TUNED}}
    found = forgetting(
        run.models[BASE],
        run.models[TUNED],
        run.tasks,
        checkpoints=between,
        likelihood=fisher.likelihood,
        draws=fisher.draws,
        seed=fisher.seed,
        batch_size=fisher.batch_size,
        progress=not quiet,
    )
    options = {
        "points": POINTS,
        "structures": STRUCTURES,
        "draws": fisher.draws,
        "seed": fisher.seed,
    }
    leave(run, "forgetting", "Forgetting", found, options, quiet=quiet)


def _check(given: dict[str, Any]) -> None:
    if given.get("model"):
        raise ConfigError("forget takes --base and --tuned, not --model")
