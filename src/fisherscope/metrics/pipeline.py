"""The main job: validate, plan, estimate, analyse, write."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from fisherscope.distributed import Ranks, alone
from fisherscope.errors import ConfigError, StoreError
from fisherscope.metrics.config_file import config_to_yaml
from fisherscope.metrics.estimating import Estimated, check_store, estimate_tasks
from fisherscope.metrics.model_analysis import ModelAnalysis
from fisherscope.metrics.model_comparison import compare_models
from fisherscope.metrics.preparing import PreparedRun, Read, prepare_run, read_run
from fisherscope.metrics.run_config import RunConfig
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
from fisherscope.metrics.tables import comparison_tables, tables_of
from fisherscope.metrics.unified import UnifiedModelAnalyzer
from fisherscope.results import plain
from fisherscope.store import FisherStore

OnPlan = Callable[[dict[str, Any]], None]
OnResults = Callable[[Path, dict[str, Any]], None]
Say = Callable[[str], None]


def analyze(
    config: RunConfig,
    *,
    progress: bool = True,
    on_plan: OnPlan | None = None,
    on_results: OnResults = lambda *_: None,
    say: Say = lambda _: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run the main job and leave its results in ``config.out``.

    Everything that can be found wrong is found before the first long step, and nothing is
    written until then. Started again, a run takes the Fishers that it finds finished. Of
    several models each has its own run in a folder of its name, and ``config.out`` itself
    holds the comparison.

    Args:
        config: The run; ``out`` must be given.
        progress: Whether progress bars are shown.
        on_plan: Called with task name to plan when all is validated and work begins; for
            several models once for each.
        on_results: Called with folder and results as soon as these are complete; for several
            models once for each, and at last for the comparison.
        say: Called with a line of text at the beginning of each step.
        command: What was typed, for the record.

    Where a process group is initialised, all ranks make this call and share the estimates; the
    first one does the rest, and writes.

    Returns:
        The content of ``results.json``; on ranks other than the first nothing.

    Raises:
        ConfigError: If several processes are to analyse several models.
    """
    hooks = _Hooks(progress, on_plan, on_results, say, command)
    ranks = Ranks()
    if isinstance(config.model, str):
        begun = _begin(config, Path(FISHER), hooks.on_plan, ranks)
        if ranks.world > 1:
            prepared, store = begun
            estimate_tasks(
                prepared.model,
                prepared.tasks,
                prepared.config.fisher,
                store,
                progress=progress,
                say=say,
                plans=prepared.plans,
                budget=prepared.config.budget,
            )
        if not ranks.first:
            return {}
        with alone():
            return _one(begun, hooks)[1]
    if ranks.world > 1:
        raise ConfigError(
            f"{ranks.world} processes analyse one model at a time: give --model once, without a "
            "name, or start one process for all of them"
        )
    return _several(config, hooks, ranks)


@dataclass(frozen=True)
class _Hooks:
    progress: bool
    on_plan: OnPlan | None
    on_results: OnResults
    say: Say
    command: str | None
    start: float = field(default_factory=time.perf_counter)


def _one(
    begun: tuple[PreparedRun, FisherStore], hooks: _Hooks
) -> tuple[ModelAnalysis, dict[str, Any]]:
    prepared, store = begun
    config = prepared.config
    start = hooks.start
    out = Path(config.out or "")
    write_bytes(out / CONFIG, config_to_yaml(config).encode())
    found = UnifiedModelAnalyzer(store, config.fisher).analyze_one(
        prepared.model,
        prepared.tasks,
        keys={name: name for name in prepared.tasks},
        source=config.source,
        sparsity=config.sparsity,
        damage=config.damage,
        settings={"max_length": config.max_length},
        progress=hooks.progress,
        say=hooks.say,
        plans=prepared.plans,
        budget=prepared.config.budget,
    )
    results = {**found.results, "run": _run_record(start, hooks.command, prepared.model)}
    write_tables(out / TABLES, tables_of(results))
    write_json(out / RESULTS, results)
    hooks.on_results(out, results)
    return found, results


def _several(config: RunConfig, hooks: _Hooks, ranks: Ranks) -> dict[str, Any]:
    assert not isinstance(config.model, str)
    start = time.perf_counter()
    out = _out(config)
    # All that can be wrong with the last model shows before the first one's long steps.
    read = {name: read_run(config.alone(name)) for name in config.model}
    for name in read:
        check_out(out / name)
    whole = _absolute(config, out, read)
    write_bytes(out / CONFIG, config_to_yaml(whole).encode())
    found = {}
    for name in read:
        hooks.say(f"Model {name}")
        own = dataclasses.replace(hooks, start=time.perf_counter())
        found[name], _ = _one(_begin(whole.alone(name), Path(FISHER), hooks.on_plan, ranks), own)
    compared = compare_models(found, seed=config.fisher.seed)
    results = plain({
        "format": 1,
        "kind": "comparison",
        "reference": compared.reference,
        "models": {name: item.results["model"] for name, item in found.items()},
        "created": next(reversed(found.values())).results["created"],
        "version": next(iter(found.values())).results["version"],
        "settings": next(iter(found.values())).results["settings"],
        "tasks": {name: item.results["tasks"] for name, item in found.items()},
        "table": compared.table,
        "tensors": compared.tensors,
        "modules": compared.modules,
        "similarity": compared.similarity,
        "unlike": list(compared.unlike),
        "findings": compared.findings(),
        "alerts": [
            {**alert, "message": f"{name}: {alert['message']}", "link": None}
            for name, item in found.items()
            for alert in item.results["alerts"]
        ],
        "run": {"seconds": time.perf_counter() - start, "command": hooks.command},
    })
    write_tables(out / TABLES, comparison_tables(results))
    write_json(out / RESULTS, results)
    hooks.on_results(out, results)
    return results


def _absolute(config: RunConfig, out: Path, read: Mapping[str, Read]) -> RunConfig:
    one = next(iter(read.values())).config
    models = {name: item.config.source for name, item in read.items()}
    return dataclasses.replace(config, model=models, tasks=one.tasks, out=str(out))


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
    if config.out is not None and (Path(os.path.expanduser(config.out)) / CONFIG).exists():
        raise StoreError(
            f"{config.out} is a run; choose another --out, or its store, {config.out}/{FISHER}"
        )
    prepared, store = _begin(config, Path(), on_plan, Ranks())
    return estimate_tasks(
        prepared.model,
        prepared.tasks,
        prepared.config.fisher,
        store,
        progress=progress,
        say=say,
        plans=prepared.plans,
        budget=prepared.config.budget,
    )


def _begin(
    config: RunConfig, inside: Path, on_plan: OnPlan | None, ranks: Ranks
) -> tuple[PreparedRun, FisherStore]:
    out = ranks.each(lambda: _out(config))[ranks.rank]
    prepared = prepare_run(config)
    store: list[FisherStore] = []

    def check() -> None:
        store.append(_checked(prepared, out, inside))
        if on_plan is not None:
            on_plan(prepared.plans)

    ranks.each(check)
    return prepared, store[0]


def _checked(prepared: PreparedRun, out: Path, inside: Path) -> FisherStore:
    """The store of a run, if it has room and holds nothing of another one."""
    store = FisherStore(out / inside)
    check_store(prepared.model, prepared.tasks, prepared.config.fisher, store, whole=True)
    missing = [name for name in prepared.tasks if name not in store]
    check_space(out, _bytes_needed(prepared, missing))
    return store


def _out(config: RunConfig) -> Path:
    if config.out is None:
        raise ConfigError("no out; give --out FOLDER, or 'out:' in a config file")
    out = Path(os.path.expanduser(config.out)).absolute()
    check_out(out)
    return out


def _bytes_needed(prepared: PreparedRun, tasks: list[str]) -> int:
    # Sums with their halves, and the ledger in float64: once for the whole, once in the halves.
    ledgers = (16 * len(prepared.tasks[name]) * len(prepared.plans[name].rules) for name in tasks)
    sums = (prepared.plans[name].fisher_bytes for name in tasks)
    return int(1.1 * (sum(sums) + sum(ledgers))) + 1_000_000


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
