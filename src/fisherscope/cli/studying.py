"""The end of every study command: leave the results, say what was found and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fisherscope.cli.analyze import command_line
from fisherscope.metrics.run_folder import REPORT
from fisherscope.metrics.study_run import StudyResult, StudyRun, finish_study
from fisherscope.report import summary, write_report


def leave(
    run: StudyRun,
    kind: str,
    title: str,
    found: StudyResult,
    options: Mapping[str, Any],
    *,
    quiet: bool,
) -> None:
    """Write results, tables and page into the run's folder, and print the findings.

    Args:
        run: The study's input.
        kind: Which study, as the report's registry names it.
        title: Heading of its page.
        found: What it found.
        options: Its options, for the record.
        quiet: Print nothing but the place of the report.
    """
    results = finish_study(
        run, kind, title, found, options=options, command=command_line(), report=write_report
    )
    if not quiet:
        click.echo(summary(results))
        click.echo()
    click.echo(f"Report: {run.out / REPORT}")
