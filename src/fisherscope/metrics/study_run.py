"""What every study command does around its study: read the input, leave the results."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from torch import nn

from fisherscope.data import Example
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import ConfigError
from fisherscope.metrics.config_file import config_to_yaml
from fisherscope.metrics.loading import load_model
from fisherscope.metrics.preparing import read_run
from fisherscope.metrics.run_config import RunConfig
from fisherscope.metrics.run_folder import (
    CONFIG,
    REPORT,
    RESULTS,
    TABLES,
    check_out,
    write_bytes,
    write_json,
    write_tables,
)
from fisherscope.preparation import VERSION
from fisherscope.recognition import resolve
from fisherscope.results import plain


class StudyResult(Protocol):
    """A frozen dataclass whose frames are its tables."""

    def findings(self) -> list[str]:
        """What was found, in sentences with numbers, the main one first.

        Returns:
            Plain text.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values.

        Returns:
            One entry per field.
        """
        ...


@dataclass(frozen=True)
class StudyRun:
    """A study's input, read and found sound.

    Attributes:
        config: The run with every path absolute.
        out: Folder for what it leaves.
        models: Model name to model, in eval mode on its device.
        tasks: Task name to examples.
        start: When it began, by the clock of ``time.perf_counter``.
    """

    config: RunConfig
    out: Path
    models: dict[str, nn.Module]
    tasks: dict[str, list[Example]]
    start: float

    @property
    def model(self) -> nn.Module:
        """The first model."""
        return next(iter(self.models.values()))


def begin_study(config: RunConfig) -> StudyRun:
    """Read and check tasks and models.

    Args:
        config: The run; ``out`` must be given. Of several models all must read the tasks into
            the same tokens.

    Returns:
        The input.

    Raises:
        ConfigError: If there is no ``out``, or two models have unlike tokenizers.
    """
    start = time.perf_counter()
    if config.out is None:
        raise ConfigError("no out; give --out FOLDER")
    out = Path(os.path.expanduser(config.out)).absolute()
    check_out(out)
    several = not isinstance(config.model, str)
    names = list(config.model) if several else ["model"]
    parts = {name: config.alone(name) if several else config for name in names}
    read = {name: read_run(part) for name, part in parts.items()}
    first = read[names[0]]
    for name, other in read.items():
        if not _same(first.tasks, other.tasks):
            raise ConfigError(
                f"models {names[0]!r} and {name!r} read the tasks into unlike tokens; a study "
                "compares models on the same tokens, so they need the same tokenizer"
            )
    models = {name: load_model(read[name].checkpoint, parts[name]) for name in names}
    places = {name: str(item.config.model) for name, item in read.items()}
    whole = dataclasses.replace(
        first.config, model=places if several else places[names[0]], out=str(out)
    )
    return StudyRun(whole, out, models, first.tasks, start)


def keep_config(run: StudyRun) -> None:
    """Leave the resolved config in the run's folder, which makes it that of a run.

    Args:
        run: The study's input.
    """
    write_bytes(run.out / CONFIG, config_to_yaml(run.config).encode())


def finish_study(
    run: StudyRun,
    kind: str,
    title: str,
    result: StudyResult,
    *,
    options: Mapping[str, Any],
    command: str | None,
    report: Callable[[Mapping[str, Any], Path], Any],
) -> dict[str, Any]:
    """Leave config, results, tables and report in the run's folder.

    Args:
        run: The study's input.
        kind: Which study, as the report's registry names it.
        title: Heading of its page.
        result: What it found.
        options: Its options, for the record.
        command: What was typed, for the record.
        report: Writes the page of the results to a path.

    Returns:
        The content of ``results.json``.
    """
    now = datetime.datetime.now(datetime.UTC)
    results = plain({
        "format": 1,
        "kind": kind,
        "title": title,
        "version": VERSION,
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "findings": result.findings(),
        "models": {name: _model(name, model, run.config) for name, model in run.models.items()},
        "tasks": {name: _task(name, run) for name in run.tasks},
        "settings": dict(options),
        "study": result.to_dict(),
        "run": {"seconds": time.perf_counter() - run.start, "command": command},
    })
    keep_config(run)
    write_tables(run.out / TABLES, _frames(result))
    write_json(run.out / RESULTS, results)
    report(results, run.out / REPORT)
    return results


def _same(a: Mapping[str, list[Example]], b: Mapping[str, list[Example]]) -> bool:
    return all(
        len(a[task]) == len(b[task])
        and all(
            x.inputs.keys() == y.inputs.keys()
            and all(x.inputs[k].equal(y.inputs[k]) for k in x.inputs)
            for x, y in zip(a[task], b[task], strict=True)
        )
        for task in a
    )


def _frames(result: StudyResult) -> dict[str, pd.DataFrame]:
    fields = dataclasses.fields(result)  # pyright: ignore[reportArgumentType]
    values = {field.name: getattr(result, field.name) for field in fields}
    return {name: value for name, value in values.items() if isinstance(value, pd.DataFrame)}


def _model(name: str, model: nn.Module, config: RunConfig) -> dict[str, Any]:
    return {
        "source": config.model if isinstance(config.model, str) else config.model[name],
        "class": type(model).__name__,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": model_fingerprint(model),
    }


def _task(name: str, run: StudyRun) -> dict[str, Any]:
    rows = run.tasks[name]
    likelihood = resolve(run.model, run.config.fisher.likelihood, rows)
    complete = likelihood.complete(rows, sampled=False)
    return {
        "source": run.config.tasks[name],
        "n_examples": len(rows),
        "n_tokens": sum(likelihood.tokens(e) for e in complete),
    }
