"""``fisherscope demo``: the main job on real input that every machine has."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fisherscope.cli.analyze import bars, run_analysis, say
from fisherscope.cli.failures import ClearCommand
from fisherscope.defaults import FisherConfig
from fisherscope.demo import DemoArtifacts, build
from fisherscope.metrics.run_config import RunConfig

ANALYSIS = "analysis"


@click.command("demo", cls=ClearCommand)
@click.option("--out", default="runs/demo", show_default=True, help="Folder for everything.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="No progress bars, no plan, no summary.")
def demo_command(out: str, seed: int, quiet: bool) -> None:
    """Train two small models on Python's own library and analyse one of them.

    Needs no network: code, prose and questions come from the standard library. Takes a few
    minutes on two cores. Run again, it goes on with what is there.
    """
    bars(shown=not quiet)
    folder = Path(out)
    if not quiet:
        say(f"Building models and tasks in {folder}")
    artifacts = build(folder, seed=seed, progress=not quiet)
    config = RunConfig(
        model=str(artifacts.instruct),
        tasks={name: str(path) for name, path in artifacts.tasks.items()},
        out=str(folder / ANALYSIS),
        fisher=FisherConfig(seed=seed, halves=True),
    )
    run_analysis(config, quiet=quiet)
    if not quiet:
        click.echo(_next_steps(artifacts, folder))


def _next_steps(artifacts: DemoArtifacts, folder: Path) -> str:
    tasks = " ".join(
        f"--task {shlex.quote(f'{name}={_short(path)}')}" for name, path in artifacts.tasks.items()
    )
    base = shlex.quote(_short(artifacts.base))
    return (
        "\nNext, the model before it was tuned, on the same tasks:\n"
        f"  fisherscope analyze --model {base} {tasks} --out {shlex.quote(f'{folder}/base')}\n"
        "and then your own:\n"
        "  fisherscope analyze --model PATH_OR_HUB_ID --task NAME=FILE.jsonl --task … --out RUN\n"
        'Rows are {"text": …}, {"prompt": …, "completion": …}, {"messages": […]} or '
        '{"text": …, "label": …}; `fisherscope plan` with the same options shows the cost first.'
    )


def _short(path: Path) -> str:
    # Relative where that is possible: a line that fits can be copied.
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
