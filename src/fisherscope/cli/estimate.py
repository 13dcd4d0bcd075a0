"""``fisherscope estimate``: Fishers alone, without the analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fisherscope.cli.analyze import bars, say, show_plans
from fisherscope.cli.failures import ClearCommand, mark_running
from fisherscope.cli.options import run_config, run_options
from fisherscope.metrics.pipeline import estimate_only


@click.command("estimate", cls=ClearCommand)
@run_options
@click.option("--out", required=True, help="Folder of the store; each task gets one inside.")
@click.option("-q", "--quiet", is_flag=True, help="No plan, no progress bars.")
def estimate_command(quiet: bool, **given: Any) -> None:
    """Estimate each task's Fisher into a store, for `compare` or for Python.

    Read one with `fisherscope.FisherStore(OUT)["TASK"]`. Tasks that the store holds already
    for this model, data and settings are not estimated again.
    """
    config = run_config(**given)
    bars(shown=not quiet)

    def on_plan(plans: dict[str, Any]) -> None:
        if not quiet:
            show_plans(plans)
        mark_running("Finished tasks are kept; the same command goes on from there.")

    done = estimate_only(
        config,
        progress=not quiet,
        on_plan=on_plan,
        say=(lambda _: None) if quiet else say,
    )
    for name, item in done.items():
        fisher = item.fisher
        how = "kept" if item.seconds is None else f"{item.seconds:.1f} s"
        click.echo(
            f"{name}: {fisher.n_examples} examples, {fisher.n_tokens} tokens, "
            f"trace {fisher.trace():.6g} ± {fisher.standard_error()['']:.2g} ({how})"
        )
    click.echo(f"Store: {Path(given['out'])}")
