"""The options that describe a run, shared by every command that needs a model and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from fisherscope.defaults import DEFAULTS, FisherType, Sampling, Unit
from fisherscope.errors import ConfigError, FisherscopeError, TaskError
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


def run_config(usual: Mapping[str, Any] | None = None, /, **given: Any) -> RunConfig:
    """Make a run of what the user gave: the config file first, options over it.

    Args:
        usual: The command's own defaults, under both. Default: none.
        **given: Values of :func:`run_options`; ``None`` where an option was not used.

    Returns:
        The checked run.
    """
    path = given.pop("config", None)
    values = {**(usual or {}), **(read_config(path) if path else {})}
    tasks = given.pop("task", ()) or ()
    if tasks:
        values["tasks"] = _named("task", tasks)
    models = given.pop("model", ()) or ()
    if models:
        # A single one is taken as it is: a folder's name may have an equals sign in it.
        values["model"] = models[0] if len(models) == 1 else _named("model", models)
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


def _replayed(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Let a study's config stand for its command's own options."""
    del parameter
    try:
        study = read_config(path).get("study") if path else None
    except ConfigError:
        return path  # the command itself says what is wrong with it
    if not isinstance(study, Mapping):
        return path
    command = study.get("command")
    if command != context.info_name:
        raise click.UsageError(f"{path} is of `fisherscope {command}`; replay it with that command")
    own = {key: value for key, value in study.items() if key != "command"}
    known = {option.name for option in context.command.params}
    unknown = [key for key in own if key not in known]
    if unknown:
        raise click.UsageError(f"config file {path}: study.{unknown[0]} is no option of {command}")
    context.default_map = {**(context.default_map or {}), **own}
    return path


def _named(option: str, pairs: tuple[str, ...]) -> dict[str, str]:
    example, error = _NAMED[option]
    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, place = pair.partition("=")
        if not equals or not place:
            raise ConfigError(f"--{option} {pair!r} is not {example}")
        if name in named:
            raise error(f"--{option} {name!r} is given twice; give each {option} its own name")
        named[name] = place
    return named


_NAMED: dict[str, tuple[str, type[FisherscopeError]]] = {
    "task": ("NAME=FILE, for example code=data/code.jsonl", TaskError),
    "model": ("NAME=PATH_OR_HUB_ID, which each of several models needs", ConfigError),
}

_OPTIONS = (
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_replayed,
        help="YAML file with any of these settings; options on the command line win.",
    ),
    click.option(
        "--model",
        multiple=True,
        metavar="[NAME=]PLACE",
        help="Folder of a Hugging Face checkpoint, or a hub id. To compare several, repeat it with "
        "a name for each (analyze and percolate).",
    ),
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
        "--memory-limit",
        metavar="SIZE",
        help="Most memory for a Fisher's sums, such as 8GB: more passes over the data, finished "
        "sums in files without a name in --out.",
    ),
    click.option(
        "--offload-folder",
        metavar="FOLDER",
        help="Keep sums on disk, in files without a name in this folder, also without a limit.",
    ),
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
