"""``fisherscope validate``: are the files of a run still what was written?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from fisherscope.cli.failures import FAILED, ClearCommand
from fisherscope.cli.places import is_fisher, is_run, open_store
from fisherscope.errors import FisherscopeError
from fisherscope.metrics.run_folder import RESULTS, read_results
from fisherscope.structures.io import load


@click.command("validate", cls=ClearCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_context
def validate_command(ctx: click.Context, path: Path) -> None:
    """Read every file under PATH and compare it with its checksum.

    PATH is a run, a store, or the folder of one Fisher. Exits with 1 if anything is damaged.
    """
    checks: dict[str, Callable[[], object]] = {}
    if is_fisher(path):
        checks[path.name] = partial(load, path)
    else:
        store = open_store(path)
        checks |= {name: partial(store.__getitem__, name) for name in store}
    if is_run(path) and (path / RESULTS).exists():
        checks[RESULTS] = partial(read_results, path)
    bad = 0
    for name, check in checks.items():
        try:
            check()
        except FisherscopeError as error:
            bad += 1
            click.echo(f"{name}: damaged. {error}", err=True)
        else:
            click.echo(f"{name}: ok")
    if bad:
        click.echo(f"Error: {bad} of {len(checks)} are damaged in {path}", err=True)
        ctx.exit(FAILED)
