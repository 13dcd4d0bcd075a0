"""``fisherscope validate``: are the files of a run still what was written?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fisherscope.cli.failures import FAILED, ClearCommand
from fisherscope.cli.places import is_fisher, is_run
from fisherscope.errors import FisherscopeError, StoreError
from fisherscope.metrics.run_folder import CONFIG, FISHER, RESULTS, read_results, write_json
from fisherscope.store import task_of
from fisherscope.structures.checks import RECORD, Finding, changed, check, record


@click.command("validate", cls=ClearCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--repair",
    is_flag=True,
    help="Remove what is damaged or was left by a killed process, and say what to compute again.",
)
@click.pass_context
def validate_command(ctx: click.Context, path: Path, repair: bool) -> None:
    """Read every file under PATH and compare it with its checksum.

    PATH is a run, a store, a checkpoint, or the folder of one Fisher. Exits with 1 if anything is
    damaged and stays so. A config.yaml is never removed.
    """
    found = _findings(path)
    for finding in found:
        if finding.problem is None:
            click.echo(f"{_name(finding, path)}: ok")
        else:
            click.echo(f"{_name(finding, path)}: damaged. {finding.problem}", err=True)
    bad = [finding for finding in found if finding.problem is not None]
    if bad and repair:
        bad = _repair(bad, path)
    if bad:
        click.echo(f"Error: {len(bad)} of {len(found)} are damaged in {path}", err=True)
        ctx.exit(FAILED)


def _findings(path: Path) -> list[Finding]:
    if not path.is_dir():
        raise StoreError(f"{path} does not exist; give the folder of a run or of a store")
    found = [*check(path), *_results(path)]
    if not found:
        raise StoreError(
            f"{path} holds no Fisher; make one with `fisherscope estimate` or `fisherscope analyze`"
        )
    return found


def keep_record(run: Path) -> None:
    """Write down the checksums of a run's own files, for :func:`validate_command`.

    Args:
        run: The folder of the run.
    """
    write_json(run / RECORD, record(run))


def keep_record_of(file: Path) -> None:
    """Write down that one file of a run is new, if the run has a record.

    Args:
        file: Directly in the folder of the run.
    """
    place = file.parent / RECORD
    if place.is_file():
        write_json(place, changed(file.parent, [file.name]))


def _name(finding: Finding, root: Path) -> str:
    if finding.path == root:
        return root.name
    parts = finding.path.relative_to(root).parts
    if finding.kind != "folder":
        return "/".join(parts)
    inside = parts[1:] if parts[0] == FISHER and len(parts) > 1 else parts
    return task_of(inside[0]) if len(inside) == 1 else "/".join(parts)


def _results(path: Path) -> list[Finding]:
    if is_fisher(path) or not is_run(path) or not (path / RESULTS).exists():
        return []
    if (path / RECORD).exists():
        return []  # its checksum says more
    try:
        read_results(path)
    except FisherscopeError as error:
        return [Finding(path / RESULTS, "file", str(error))]
    return [Finding(path / RESULTS, "file")]


def _repair(bad: Sequence[Finding], root: Path) -> list[Finding]:
    """Repair what can be; what can't is returned."""
    left: list[Finding] = []
    again: list[str] = []
    for finding in bad:
        name = _name(finding, root)
        if finding.path.name == CONFIG:
            click.echo(f"{name}: left alone; restore it from a copy", err=True)
            left.append(finding)
            continue
        try:
            done = finding.repair()
        except (OSError, StoreError) as error:
            click.echo(f"{name}: can't be repaired. {error}", err=True)
            left.append(finding)
            continue
        click.echo(f"{name}: {done}")
        if finding.kind != "leftover":
            again.append(name)
    _forget([finding.path for finding in bad if finding not in left])
    if again:
        click.echo(f"To be computed again: {', '.join(again)}")
        if (root / CONFIG).is_file():
            click.echo(f"Do it with: fisherscope analyze --config {root / CONFIG}")
        else:
            click.echo("The command that made them makes just these again.")
    return left


def _forget(gone: Sequence[Path]) -> None:
    """Leave files that were removed out of the records of their runs."""
    for run in {folder for path in gone for folder in path.parents}:
        if (run / RECORD).is_file():
            inside = [p.relative_to(run).as_posix() for p in gone if p.is_relative_to(run)]
            write_json(run / RECORD, changed(run, inside))
