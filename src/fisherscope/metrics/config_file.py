"""Runs as YAML files: read with errors that name the key, written so that they replay."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fisherscope.defaults import FisherConfig
from fisherscope.errors import ConfigError, TaskError
from fisherscope.metrics.plain_yaml import plain_yaml
from fisherscope.metrics.run_config import (
    DAMAGE_KEYS,
    FISHER_KEYS,
    RUN_KEYS,
    DamageConfig,
    RunConfig,
    settings_of,
)

_SECTIONS = {"fisher": FISHER_KEYS, "damage": DAMAGE_KEYS}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML config file into plain nested settings.

    Args:
        path: The file. Relative task paths, a relative ``out`` and a model folder that
            exists beside the file are resolved against the file's own folder.

    Returns:
        Only the settings that the file names, ready for :func:`build_config`.

    Raises:
        ConfigError: If the file is missing, not YAML, not a mapping, or names a key that
            does not exist; the message has the near matches.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    try:
        values = plain_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"config file {path}{error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} is not a mapping; it begins with 'model: …'")
    _check_keys(path, values)
    return _resolved(values, path.resolve().parent)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """Turn plain nested settings into a checked run.

    Args:
        values: Keys of :class:`RunConfig`; ``fisher`` and ``damage`` are mappings.

    Returns:
        The run, with the defaults for whatever is not named.

    Raises:
        ConfigError: If the model or the tasks are missing, or a value is unusable.
    """
    _check_keys(None, values)
    for key, how in (("model", "--model PATH_OR_HUB_ID"), ("tasks", "--task NAME=FILE")):
        if values.get(key) is None:
            raise ConfigError(f"no {key}; give {how}, or '{key}:' in a config file")
    rest = {key: item for key, item in values.items() if key not in _SECTIONS}
    fisher = FisherConfig(**{**(values.get("fisher") or {}), "halves": True})
    return RunConfig(fisher=fisher, damage=DamageConfig(**(values.get("damage") or {})), **rest)


def config_from_yaml(path: str | Path) -> RunConfig:
    """Read a run from a YAML file.

    Args:
        path: The file.

    Returns:
        The checked run.

    Raises:
        ConfigError: If the file cannot be read or one of its settings is wrong; the message
            names the file.
        TaskError: If a task can't be called so.
    """
    try:
        return build_config(read_config(path))
    except (ConfigError, TaskError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"config file {path}: {error}") from error


def config_to_yaml(config: RunConfig) -> str:
    """Write a run as YAML that gives the same run back.

    Args:
        config: The run.

    Returns:
        The text, every setting named, in the order of :class:`RunConfig`.
    """
    values: dict[str, Any] = {key: getattr(config, key) for key in RUN_KEYS}
    values["tasks"] = dict(config.tasks)
    if not isinstance(config.model, str):
        values["model"] = dict(config.model)
    values["fisher"] = settings_of(config.fisher)
    values["damage"] = {key: getattr(config.damage, key) for key in DAMAGE_KEYS}
    if config.study is None:
        del values["study"]
    else:
        values["study"] = dict(config.study)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _resolved(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    tasks = values.get("tasks")
    if isinstance(tasks, dict):
        values["tasks"] = {
            name: str(folder / os.path.expanduser(item)) if isinstance(item, str) and item else item
            for name, item in tasks.items()
        }
    for key in ("out", "offload_folder"):
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(folder / os.path.expanduser(values[key]))
    model = values.get("model")
    if isinstance(model, dict):
        values["model"] = {name: _beside(place, folder) for name, place in model.items()}
    elif model is not None:
        values["model"] = _beside(model, folder)
    return values


def _beside(model: Any, folder: Path) -> Any:
    # A relative model may also be a hub id; a folder beside the file decides.
    if not isinstance(model, str) or not model:
        return model
    place = folder / os.path.expanduser(model)
    return str(place) if os.path.isdir(place) else model


def _check_keys(path: Path | None, values: Mapping[str, Any]) -> None:
    where = f"config file {path}: " if path else ""
    for key in values:
        if key not in RUN_KEYS:
            raise ConfigError(f"{where}unknown key {key!r}{_near(key, RUN_KEYS)}")
    for section, known in _SECTIONS.items():
        inner = values.get(section)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{where}{section} is {inner!r}; expected a mapping of settings")
        for key in inner:
            if key not in known:
                raise ConfigError(f"{where}unknown key {section}.{key}{_near(key, known)}")


def _near(key: object, known: Iterable[str]) -> str:
    known = list(known)
    places = {name: name for name in known}
    if known == list(RUN_KEYS):
        places |= {name: f"{part}.{name}" for part, names in _SECTIONS.items() for name in names}
    close = difflib.get_close_matches(str(key).replace("-", "_"), list(places), n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(places[name] for name in close)}?"
    return f"; known are {', '.join(known)}"
