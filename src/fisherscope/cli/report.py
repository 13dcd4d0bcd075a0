"""``fisherscope report``: draw a run's report again from its numbers."""

from __future__ import annotations

from pathlib import Path

import click

from fisherscope.cli.failures import ClearCommand
from fisherscope.cli.validate import keep_record_of
from fisherscope.metrics.run_folder import REPORT, read_results, writing
from fisherscope.report import summary, write_report


@click.command("report", cls=ClearCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"Where to write it.  [default: RUN/{REPORT}]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only where the report is.")
def report_command(run: Path, out: Path | None, quiet: bool) -> None:
    """Write RUN/report.html again from RUN/results.json; nothing is computed."""
    results = read_results(run)
    target = out or (run if run.is_dir() else run.parent) / REPORT
    with writing(target):
        write_report(results, target)
    keep_record_of(target)
    if not quiet:
        click.echo(summary(results))
        click.echo()
    click.echo(f"Report: {target}")
