"""``fisherscope ls``: what a run or a store holds."""

from __future__ import annotations

from pathlib import Path

import click

from fisherscope.cli.failures import ClearCommand
from fisherscope.cli.places import is_fisher, open_store
from fisherscope.structures import Fisher
from fisherscope.structures.io import load


@click.command("ls", cls=ClearCommand)
@click.argument("path", type=click.Path(path_type=Path))
def ls_command(path: Path) -> None:
    """List the Fishers in PATH: a run, a store, or the folder of one Fisher."""
    if is_fisher(path):
        fishers = {path.name: load(path)}
    else:
        store = open_store(path)
        fishers = {name: store[name] for name in store}
    width = max(len("task"), *(len(name) for name in fishers))
    click.echo(f"{'task':<{width}}  {'examples':>8}  {'tokens':>9}  {'trace':>10}  {'±':>8}  what")
    for name, fisher in fishers.items():
        click.echo(_line(name.ljust(width), fisher))


def _line(name: str, fisher: Fisher) -> str:
    identity = fisher.identity
    draws = f", {identity.draws} draws" if identity.fisher_type == "mc" else ""
    what = (
        f"{identity.structure}, {identity.fisher_type}{draws}, per {identity.unit}, "
        f"{identity.likelihood}, {fisher.n_parameters:,} parameters"
    )
    return (
        f"{name}  {fisher.n_examples:>8}  {fisher.n_tokens:>9}  {fisher.trace():>10.4g}  "
        f"{fisher.standard_error()['']:>8.2g}  {what}"
    )
