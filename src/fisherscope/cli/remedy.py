"""``fisherscope remedy``: what would have kept old tasks while a new one is learnt."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.analyze import say
from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_options
from fisherscope.cli.studying import leave, lesson, lesson_config, replayable
from fisherscope.errors import ConfigError
from fisherscope.metrics.study_run import begin_study
from fisherscope.studies.remedies import remedies
from fisherscope.studies.remedies.arms import NULLS, REMEDIES, STRENGTHS
from fisherscope.studies.remedies.study import BATCH_ROWS, EVERY, FISHER_ROWS, LEVELS, SEEDS
from fisherscope.studies.tuning import Schedule

STEPS = 100
RUNS = "fine-tunings"
HELD_OUT = "held-out"


@click.command("remedy", cls=ClearCommand)
@run_options
@click.option("--learn", metavar="NAME=FILE", required=True, help="The new task.")
@click.option(
    "--held-out", metavar="FILE", help="Rows to measure it on.  [default: half of --learn]"
)
@click.option("--out", help="Folder for everything the study leaves: numbers, tables, report.")
@click.option("--rate", type=float, required=True, help="Largest learning rate.")
@click.option("--steps", type=int, default=STEPS, show_default=True, help="Optimiser steps.")
@click.option(
    "--batch-rows", type=int, default=BATCH_ROWS, show_default=True, help="Rows per step."
)
@click.option(
    "--every", type=int, default=EVERY, show_default=True, help="Steps between measurements."
)
@click.option(
    "--seeds", type=int, default=len(SEEDS), show_default=True, help="Fine-tunings of each arm."
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice(REMEDIES),
    help="A remedy, tried with its null; repeat for more.  [default: all]",
)
@click.option(
    "--level", "levels", type=float, multiple=True,
    help="Share of plain fine-tuning's progress at which losses are compared; repeat for more.  "
    f"[default: {', '.join(map(str, LEVELS))}]",
)  # fmt: skip
@click.option(
    "--strength", type=float, default=STRENGTHS.strength, show_default=True, help="Of EWC and L2."
)
@click.option(
    "--freeze-share", type=float, default=STRENGTHS.freeze_share, show_default=True,
    help="Share of weights that are frozen.",
)  # fmt: skip
@click.option(
    "--mask-share", type=float, default=STRENGTHS.mask_share, show_default=True,
    help="Share of weights that may move under a mask.",
)  # fmt: skip
@click.option(
    "--scope", type=click.Choice(("global", "tensor")), default=STRENGTHS.scope, show_default=True,
    help="Whether shares are of the model or of each tensor.",
)  # fmt: skip
@click.option(
    "--lora-share", type=float, default=STRENGTHS.lora_share, show_default=True,
    help="Share of linear layers with an adapter.",
)  # fmt: skip
@click.option(
    "--lora-rank", type=int, default=STRENGTHS.lora_rank, show_default=True, help="Their rank."
)
@click.option(
    "--lora-rate", type=float, default=STRENGTHS.lora_rate, show_default=True,
    help="What the rate is multiplied by for adapters.",
)  # fmt: skip
@click.option(
    "--fisher-rows", type=int, default=FISHER_ROWS, show_default=True,
    help="Most rows of a task that Fishers are made from.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no summary.")
def remedy_command(
    quiet: bool, learn: str, held_out: str | None, rate: float, steps: int, seeds: int, **given: Any
) -> None:
    """Fine-tune on a new task plainly and with each remedy, and compare the old tasks.

    Every remedy stands beside its null, at equal loss of the new task. Half of each task's rows
    make the Fishers, the other half is measured. Interrupted, the same command goes on where it
    stopped.
    """  # noqa: DOC501 (click shows this text)
    names = (
        "batch_rows", "every", "strength", "freeze_share", "mask_share", "scope", "lora_share",
        "lora_rank", "lora_rate", "fisher_rows",
    )  # fmt: skip
    options = {name: given.pop(name) for name in names}
    options |= {"arms": given.pop("arms") or REMEDIES, "levels": given.pop("levels") or LEVELS}
    name, file = lesson(learn)
    measured = f"{name}-{HELD_OUT}"
    config = lesson_config({name: file} | ({measured: held_out} if held_out else {}), **given)
    if not isinstance(config.model, str):
        raise ConfigError("remedy takes one --model; study several one by one")
    run = begin_study(config)
    files = run.config.tasks
    run = replayable(run, learn=f"{name}={files[name]}", held_out=files.get(measured))
    mark_running("Finished fine-tunings are kept; the same command goes on from there.")
    fisher = run.config.fisher
    if not quiet:
        tried = ", ".join(f"{arm} and {NULLS[arm]}" for arm in options["arms"])
        count = seeds * (1 + 2 * len(options["arms"]))
        say(f"{count} fine-tunings of {steps} steps: plain, {tried}")
    found = remedies(
        run.model,
        run.tasks[name],
        {task: rows for task, rows in run.tasks.items() if task not in {name, measured}},
        held_out=run.tasks.get(measured),
        name=name,
        schedule=Schedule(steps=steps, peak=rate),
        seeds=range(seeds),
        likelihood=fisher.likelihood,
        draws=fisher.draws,
        seed=fisher.seed,
        batch_size=fisher.batch_size,
        folder=run.out / RUNS,
        progress=not quiet,
        **options,
    )
    leave(run, "remedies", "What would have helped", found, dict(found.settings), quiet=quiet)
