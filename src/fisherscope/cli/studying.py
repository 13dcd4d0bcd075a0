"""What study commands share: the tasks of a lesson, options that replay, and the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from fisherscope.cli.analyze import command_line
from fisherscope.cli.options import run_config
from fisherscope.errors import ConfigError, TaskError
from fisherscope.metrics.run_config import FISHER_KEYS, RUN_KEYS, RunConfig
from fisherscope.metrics.run_folder import REPORT
from fisherscope.metrics.study_run import StudyResult, StudyRun, finish_study
from fisherscope.report import summary, write_report

_SHARED = {"config", "task", "quiet", *RUN_KEYS, *FISHER_KEYS}


def lesson(text: str) -> tuple[str, str]:
    """Read ``--learn``.

    Args:
        text: What was given.

    Returns:
        Name and file of the new task.

    Raises:
        ConfigError: If it is not of the form NAME=FILE.
    """
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"--learn {text!r} is not NAME=FILE, for example qa=data/qa.jsonl")
    return name, file


def lesson_config(new: Mapping[str, str], **given: Any) -> RunConfig:
    """The run of a study in which old tasks stand beside a new one.

    Args:
        new: Name to file, of the new task and its held-out rows.
        **given: As for :func:`fisherscope.cli.options.run_config`; the old tasks.

    Returns:
        The checked run, of all tasks.

    Raises:
        TaskError: If there is no old task, or one is the new task as well.
    """
    for name in (task.partition("=")[0] for task in given["task"] or ()):
        if name in new:
            raise TaskError(f"--task {name!r} is the new task of --learn; leave it to that")
    none = TaskError("no --task; give at least one old task, NAME=FILE, that may be damaged")
    if not given["task"] and given["config"] is None:
        raise none
    config = run_config(**given)
    old = {name: file for name, file in config.tasks.items() if name not in new}
    if not old:
        raise none
    return dataclasses.replace(config, tasks={**old, **new})


def named(places: Any) -> list[str]:
    """Models as an option takes them.

    Args:
        places: Model name to place.

    Returns:
        A text NAME=PLACE for each.
    """
    return [f"{name}={place}" for name, place in places.items()]


def replayable(run: StudyRun, **places: Any) -> StudyRun:
    """Write the command's own options into the run's config, so that ``--config`` replays it.

    Args:
        run: The study's input.
        **places: Those of them that name files or models, with the places that were found.

    Returns:
        The same input with these options in its config.
    """
    context = click.get_current_context()
    own = {name: value for name, value in context.params.items() if name not in _SHARED} | places
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in own.items()}
    study = {"command": context.info_name, **plain}
    return dataclasses.replace(run, config=dataclasses.replace(run.config, study=study))


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
