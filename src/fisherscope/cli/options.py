"""The options that describe a run, shared by every command that needs a model and tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from fisherscope.defaults import DEFAULTS, FisherType, Sampling, Unit
from fisherscope.errors import ConfigError, TaskError
from fisherscope.metrics.config_file import build_config, read_config
from fisherscope.metrics.run_config import DAMAGE_KEYS, FISHER_KEYS, DType, RunConfig

F = TypeVar("F", bound=Callable[..., Any])


def run_options(function: F) -> F:
    """Add the options of a run to a command; they arrive as keyword arguments.

    Args:
        function: The command's function; it passes what it gets on to :func:`run_config`.

    Returns:
        The same function with the options attached.
    """
    # click shows options in the reverse order of decoration.
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def run_config(**given: Any) -> RunConfig:
    """Make a run of what the user gave: the config file first, options over it.

    Args:
        **given: Values of :func:`run_options`; ``None`` where an option was not used.

    Returns:
        The checked run.
    """
    path = given.pop("config", None)
    values = read_config(path) if path else {}
    tasks = given.pop("task", ()) or ()
    if tasks:
        values["tasks"] = _tasks(tasks)
    if given.get("parameters") == ():
        given["parameters"] = None
    elif given.get("parameters") is not None:
        given["parameters"] = list(given["parameters"])
    for key, value in given.items():
        if value is None:
            continue
        if key in FISHER_KEYS:
            values["fisher"] = {**(values.get("fisher") or {}), key: value}
        elif key.removeprefix("damage_") in DAMAGE_KEYS and key.startswith("damage_"):
            name = key.removeprefix("damage_")
            values["damage"] = {**(values.get("damage") or {}), name: value}
        else:
            values[key] = value
    return build_config(values)


def _tasks(pairs: tuple[str, ...]) -> dict[str, str]:
    tasks: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--task {pair!r} is not NAME=FILE, for example code=data/code.jsonl")
        if name in tasks:
            raise TaskError(f"--task {name!r} is given twice; give each task its own name")
        tasks[name] = path
    return tasks


_OPTIONS = (
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="YAML file with any of these settings; options on the command line win.",
    ),
    click.option("--model", help="Folder of a Hugging Face checkpoint, or a hub id."),
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option(
        "--task",
        multiple=True,
        metavar="NAME=FILE",
        help="A task and its JSONL file; repeat for each task.",
    ),
    click.option(
        "--fisher-type",
        type=click.Choice(get_args(FisherType)),
        help=f"Whose labels: the data's, or drawn from the model.  [default: "
        f"{DEFAULTS.fisher_type}]",
    ),
    click.option(
        "--unit",
        type=click.Choice(get_args(Unit)),
        help=f"What counts as one observation.  [default: {DEFAULTS.unit}]",
    ),
    click.option(
        "--structure",
        metavar="TEXT",
        help="How much of the matrix is kept: diagonal, grouped, block, dense, kfac, ekfac, also "
        f'with options as in "kfac(sharing=reduce)".  [default: {DEFAULTS.structure}]',
    ),
    click.option("--draws", type=int, help="Label draws per example (mc only)."),
    click.option(
        "--sampling",
        type=click.Choice(get_args(Sampling)),
        help=f"What a draw is (mc only).  [default: {DEFAULTS.sampling}]",
    ),
    click.option("--seed", type=int, help=f"Keys everything random.  [default: {DEFAULTS.seed}]"),
    click.option("--max-examples", type=int, help="Use the first so many rows of each task."),
    click.option("--max-length", type=int, help="Longest sequence in tokens; longer ones are cut."),
    click.option("--batch-size", type=int, help="Examples per pass; default packs by tokens."),
    click.option(
        "--parameters",
        multiple=True,
        metavar="WHICH",
        help="Only these parameters: a glob over names, re:REGEX or layers[3:7]; repeat for more.",
    ),
    click.option("--dtype", type=click.Choice(get_args(DType)), help="Precision of the weights."),
    click.option("--device", help="cpu, cuda, cuda:1; default takes a GPU if there is one."),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        default=None,
        help="Let code that comes with the checkpoint run.",
    ),
)
