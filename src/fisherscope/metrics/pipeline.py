"""The main job: validate, plan, estimate, analyse, write."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from fisherscope.data import Example
from fisherscope.errors import ConfigError, StoreError
from fisherscope.metrics.alerts import alerts
from fisherscope.metrics.config_file import config_to_yaml
from fisherscope.metrics.damage_matrix import damage_matrix
from fisherscope.metrics.estimating import Estimated, check_store, estimate_tasks
from fisherscope.metrics.findings import (
    concentration_of,
    coverage_of,
    importance_rows,
    overlap_rows,
    similarity_rows,
    task_row,
)
from fisherscope.metrics.losses import task_loss
from fisherscope.metrics.preparing import PreparedRun, prepare_run
from fisherscope.metrics.run_config import RunConfig, settings_of
from fisherscope.metrics.run_folder import (
    CONFIG,
    FISHER,
    RESULTS,
    TABLES,
    check_out,
    check_space,
    write_bytes,
    write_json,
    write_tables,
)
from fisherscope.metrics.tables import tables_of
from fisherscope.results import plain
from fisherscope.store import FisherStore
from fisherscope.structures import Fisher

OnPlan = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]


def analyze(
    config: RunConfig,
    *,
    progress: bool = True,
    on_plan: OnPlan | None = None,
    say: Say = lambda _: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run the main job and leave its results in ``config.out``.

    Everything that can be found wrong is found before the first long step, and nothing is
    written until then. Started again, a run takes the Fishers that it finds finished.

    Args:
        config: The run; ``out`` must be given.
        progress: Whether progress bars are shown.
        on_plan: Called with task name to plan when all is validated and work begins.
        say: Called with a line of text at the beginning of each step.
        command: What was typed, for the record.

    Returns:
        The content of ``results.json``.
    """
    start = time.perf_counter()
    prepared, store = _begin(config, Path(FISHER), on_plan)
    out = Path(prepared.config.out or "")
    write_bytes(out / CONFIG, config_to_yaml(prepared.config).encode())
    estimated = estimate_tasks(prepared, store, progress=progress, say=say)
    results = _results(prepared, estimated, progress, say)
    results["alerts"] = alerts(results)
    results["run"] = _run_record(start, command, prepared.model)
    write_tables(out / TABLES, tables_of(results))
    write_json(out / RESULTS, results)
    return results


def estimate_only(
    config: RunConfig,
    *,
    progress: bool = True,
    on_plan: OnPlan | None = None,
    say: Say = lambda _: None,
) -> dict[str, Estimated]:
    """Estimate each task's Fisher into the store ``config.out``, without an analysis.

    Args:
        config: The run; ``out`` must be given.
        progress: Whether progress bars are shown.
        on_plan: Called with task name to plan when all is validated and work begins.
        say: Called with a line of text at the beginning of each step.

    Returns:
        Task name to Fisher.

    Raises:
        StoreError: If ``config.out`` is a run, whose store is a folder inside it. Whatever
            else is found wrong raises before the first estimate, as for :func:`analyze`.
    """
    if config.out is not None and (Path(config.out).expanduser() / CONFIG).exists():
        raise StoreError(
            f"{config.out} is a run; choose another --out, or its store, {config.out}/{FISHER}"
        )
    prepared, store = _begin(config, Path(), on_plan)
    return estimate_tasks(prepared, store, progress=progress, say=say)


def _begin(
    config: RunConfig, inside: Path, on_plan: OnPlan | None
) -> tuple[PreparedRun, FisherStore]:
    if config.out is None:
        raise ConfigError("no out; give --out FOLDER, or 'out:' in a config file")
    out = Path(config.out).expanduser().absolute()
    check_out(out)
    prepared = prepare_run(config)
    store = FisherStore(out / inside)
    check_store(prepared, store)
    missing = [name for name in prepared.tasks if name not in store]
    check_space(out, _bytes_needed(prepared, missing))
    if on_plan is not None:
        on_plan(prepared.plans)
    return prepared, store


def _bytes_needed(prepared: PreparedRun, tasks: list[str]) -> int:
    # Sums with their halves, and the ledger in float64: once for the whole, once in the halves.
    ledgers = (16 * len(prepared.tasks[name]) * len(prepared.plans[name].rules) for name in tasks)
    sums = (prepared.plans[name].sums_bytes for name in tasks)
    return int(1.1 * (sum(sums) + sum(ledgers))) + 1_000_000


def _results(
    prepared: PreparedRun, estimated: Mapping[str, Estimated], progress: bool, say: Say
) -> dict[str, Any]:
    config, model = prepared.config, prepared.model
    fishers = {name: item.fisher for name, item in estimated.items()}
    tasks = {name: _used(prepared.tasks[name], fisher) for name, fisher in fishers.items()}
    say("Losses, importance and concentration")
    curves, rows = {}, []
    for name, item in estimated.items():
        loss = task_loss(model, tasks[name], config.fisher)
        curves[name], participation = concentration_of(item.fisher)
        rows.append(task_row(name, item, loss, participation, curves[name]["top"]["0.01"]))
    if len(fishers) > 1:
        say("Similarity and overlap of tasks")
    pairs = similarity_rows(fishers, seed=config.fisher.seed)
    overlaps, no_overlap = overlap_rows(fishers, config.sparsity)
    first = next(iter(fishers.values()))
    now = datetime.datetime.now(datetime.UTC)
    return plain({
        "format": 1,
        "version": first.identity.version,
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "model": {
            "source": config.model,
            "class": type(model).__name__,
            "likelihood": first.identity.likelihood,
            "n_parameters": first.n_parameters,
            "n_tensors": len(first.identity.parameters),
            "dtype": first.identity.dtype,
            "fingerprint": first.identity.model_fingerprint,
            "coverage": coverage_of(first),
        },
        "settings": {
            **settings_of(config),
            "max_length": config.max_length,
            "sparsity": config.sparsity,
        },
        "tasks": rows,
        "importance": {name: importance_rows(fisher) for name, fisher in fishers.items()},
        "concentration": curves,
        "similarity": pairs,
        "overlap": overlaps,
        "overlap_absent": no_overlap,
        "damage": damage_matrix(config, model, tasks, fishers, progress=progress, say=say),
    })


def _used(examples: list[Example], fisher: Fisher) -> list[Example]:
    # An example that the estimate skipped would make every other number NaN.
    skipped = set(fisher.skipped)
    return [example for example in examples if example.id not in skipped]


def _run_record(start: float, command: str | None, model: torch.nn.Module) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": _peak_memory(),
        "device": str(next(model.parameters()).device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": command,
    }


def _peak_memory() -> int | None:
    try:
        import resource  # noqa: PLC0415 (absent on Windows)
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
