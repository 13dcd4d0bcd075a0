"""``fisherscope compare``: how alike two saved Fishers are."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from fisherscope.analysis import similarity
from fisherscope.cli.failures import ClearCommand
from fisherscope.cli.places import is_fisher, open_store
from fisherscope.errors import ConfigError
from fisherscope.structures import Fisher
from fisherscope.structures.io import load


@click.command("compare", cls=ClearCommand)
@click.argument("places", nargs=-1, required=True, metavar="RUN [TASK TASK…] | FISHER FISHER")
@click.option("--seed", type=int, default=0, show_default=True, help="Keys the permutations.")
def compare_command(places: tuple[str, ...], seed: int) -> None:
    """Show the similarity of two saved Fishers with its ceiling and floor.

    Either the folders of two Fishers, or a run or store and the tasks to compare (all of
    its tasks if none is named).
    """
    for (name_a, a), (name_b, b) in _pairs(places):
        frame = similarity(a, b, seed=seed).to_frame()
        click.echo(f"{name_a} and {name_b}")
        click.echo(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        click.echo()
    click.echo(
        "halves, low, high: between a half of the one task's data and a half of the other's; "
        "compare them with the ceiling, two halves of the same task. floor: what remains when "
        "the parameters are permuted within each tensor."
    )


def _pairs(
    places: tuple[str, ...],
) -> list[tuple[tuple[str, Fisher], tuple[str, Fisher]]]:
    first = Path(places[0])
    if is_fisher(first):
        if len(places) != 2:
            raise ConfigError(f"{first} is one Fisher; give exactly one other to compare it with")
        other = Path(places[1])
        return [((str(first), load(first)), (str(other), load(other)))]
    store = open_store(first)
    names = list(places[1:]) or list(store)
    if len(names) < 2:
        raise ConfigError(f"{first} with task {names[0]!r} alone; name two tasks to compare")
    return list(itertools.combinations([(name, store[name]) for name in names], 2))
