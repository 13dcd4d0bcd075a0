"""``fisherscope plan``: what a run would do, before it does it."""

from __future__ import annotations

from typing import Any

import click

from fisherscope.cli.analyze import show_plans
from fisherscope.cli.failures import ClearCommand
from fisherscope.cli.options import run_config, run_options
from fisherscope.metrics.preparing import prepare_run


@click.command("plan", cls=ClearCommand)
@run_options
def plan_command(**given: Any) -> None:
    """Show which rule covers which parameters, and how much memory and time a run takes.

    Everything that `analyze` checks before its first long step is checked; nothing is
    written.
    """
    show_plans(prepare_run(run_config(**given)).plans)
