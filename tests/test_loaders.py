"""Everything that reads what a stranger may have written: only our own errors come out of it."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import checkpoints
import fisherscope as fs
from fisherscope.demo import artifacts
from fisherscope.distributed import Ranks
from fisherscope.errors import FisherscopeError, StoreError
from fisherscope.metrics.config_file import config_from_yaml
from fisherscope.metrics.run_folder import check_out, read_results
from fisherscope.metrics.run_folder import write_json as write_results
from fisherscope.structures import checks, eigenvectors, load, locks, save
from fisherscope.structures.io import load_average
from fisherscope.studies.brittleness import running
from fisherscope.studies.kept import Kept
from fisherscope.studies.percolation import bench
from fisherscope.surgery.consolidate.shelf import Mapped, Shelf
from oracles.damage import DAMAGES, put, read_files
from structures.fishers import build, scores

FEW, MANY = 20, 6400
SLOW = {"checkpoint": 2000}
"""An estimate takes a while. With the 6400 of each of the others it is more than 100,000 in all."""
FISHER = build(scores("abc", draws=2), fisher_type="mc", skipped=("x",))
SETTINGS = {"seed": 0, "steps": 3}
CONFIG = """{"model": "org/name", "tasks": {"a": "a.jsonl", "b": "~/b.jsonl"}, "out": "run",
"fisher": {"structure": "kfac(widest=4)", "parameters": ["*mlp*", "re:x"], "draws": 2},
"max_length": 33, "sparsity": 0.25, "damage": {"fraction": 0.1, "max_examples": null}}"""
RUN = {
    "steps": [0, 5],
    "losses": {"new": [[0.5, 1.0], [0.25, math.nan]]},
    "tokens": {"new": [3, 4]},
    "outcome": "ok",
    "looks": [{"step": 0, "task": "old", "trace": 1.5, "top": math.nan}],
}
ROWS = """{"id": "a", "text": "the cat", "label": 1}
{"id": 7, "text": "the dog sees", "label": 0.5}
{"id": "c", "text": "one two", "label": 2}
"""
TALKS = """{"prompt": "one plus one is", "completion": "two"}
{"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "one"}]}
{"text": "the dog sees"}
"""


def average(steps: int = 2) -> fs.FisherEMA:
    found = fs.FisherEMA(0.9)
    for seed in range(steps):
        found.update(build(scores("abc", seed=seed)))
    return found


@cache
def estimating() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), (torch.randn(6, 3), torch.arange(6) % 2)


def estimate(**options: Any) -> Any:
    return fs.estimate(*estimating(), progress=False, batch_size=2, **options)


def save_factors(root: Path) -> None:
    eigenvectors.decompose(estimate(structure="kfac"), root, Ranks(together=False))


def load_factors(root: Path) -> None:
    for factor in estimated_factors():
        eigenvectors.load_eigenvectors(root, factor)


@cache
def estimated_factors() -> list:
    return list(estimate(structure="kfac").factors.values())


def save_store(root: Path) -> None:
    store = fs.FisherStore(root)
    store.put("math", build(scores("ab")), average())
    store["co/de"] = FISHER


def load_store(root: Path) -> None:
    store = fs.FisherStore(root)
    repr(store), store.least_recent()
    for task in store:
        store.nbytes(task)
        store[task], store.ema(task)


def save_run(root: Path) -> None:
    (root / "config.yaml").write_text(CONFIG)
    write_results(root / "results.json", {"format": 1, "tasks": [{"name": "a"}]})
    save(FISHER, root / "fisher" / "a", average=average())
    write_results(root / checks.RECORD, checks.record(root))


def keep_rows(root: Path) -> None:
    kept = Kept(root / "rows.jsonl", "mine", dict)
    for number in range(3):
        kept.add({"key": str(number), "tasks": {"a": [0.5, number]}})


def claim(root: Path) -> None:
    place = root / ".writing.f"
    if not place.exists():
        return
    with held(place), pytest.raises(StoreError, match="busy|can't lock") as said:
        locks.only_one(root / "f", locks.WRITING).__enter__()
    assert str(root / "f") in str(said.value)


@contextmanager
def held(place: Path) -> Generator[None]:
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def restored(found: dict[str, Any]) -> Any:
    return running._restored("base", 0.1, 0, found)


@cache
def tokenizer() -> Any:
    found = checkpoints.tokenizer()
    found.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return found


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


# What writes into a folder, and what reads it.
LOADERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "fisher": (lambda root: save(FISHER, root / "f"), lambda root: load(root / "f")),
    "halves of blocks": (
        lambda root: estimate(structure="ekfac", halves=True).save(root / "f"),
        lambda root: load(root / "f"),
    ),
    "average": (lambda root: average().save(root / "f"), lambda r: fs.FisherEMA.load(r / "f")),
    "average of a fisher": (
        lambda root: save(FISHER, root / "f", average=average()),
        lambda root: load_average(root / "f"),
    ),
    "store": (save_store, load_store),
    "checkpoint": (
        lambda root: estimate(structure="ekfac", checkpoint=root / "f"),
        lambda root: estimate(structure="ekfac", checkpoint=root / "f"),
    ),
    "eigenvectors": (save_factors, load_factors),
    "shelf": (
        lambda root: Shelf("disk", root).keep("f", {"a": torch.ones(2), "b": torch.ones(3)}, {}),
        lambda root: dict(Mapped(root / "f")),
    ),
    "results": (
        lambda root: write_results(root / "results.json", {"format": 1, "tasks": [{"name": "a"}]}),
        read_results,
    ),
    "config": (write("run.yaml", CONFIG), lambda root: config_from_yaml(root / "run.yaml")),
    "run folder": (save_run, lambda root: (check_out(root), list(checks.check(root)))),
    "rows with labels": (
        write("rows.jsonl", ROWS),
        lambda root: fs.read_jsonl(root / "rows.jsonl", tokenizer()),
    ),
    "rows": (
        write("rows.jsonl", TALKS),
        lambda root: fs.read_jsonl(root / "rows.jsonl", tokenizer()),
    ),
    "measurements": (keep_rows, lambda root: Kept(root / "rows.jsonl", "mine", bench._read)),
    "fine-tunings": (
        lambda root: Kept(root / "f.jsonl").once("key", lambda: RUN, restored),
        lambda root: Kept(root / "f.jsonl").once("key", lambda: RUN, restored),
    ),
    "demo": (
        lambda root: artifacts.publish(
            root,
            {"settings": SETTINGS, "train_losses": {"base": [1.0]}, "seconds": 1.0},
            lambda stage: [(stage / name).mkdir() for name in (artifacts.MODELS, artifacts.TASKS)],
        ),
        lambda root: artifacts.find(root, SETTINGS),
    ),
    "lock": (write(".writing.f", '{"process": 1, "host": "h", "since": 2.5}'), claim),
}


@cache
def intact(name: str, root: Path) -> dict[str, bytes]:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    write, read = LOADERS[name]
    write(root)
    files = read_files(root)
    read(root)
    return files


class Hung(BaseException):
    """What no reader takes for an error of its own."""


def hang(*_: object) -> None:
    raise Hung("still reading")


def fuzz(name: str, root: Path, damages: list) -> None:
    put(root, intact(name, root), damages)
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(20)
    try:
        LOADERS[name][1](root)
    except FisherscopeError as error:
        assert str(root) in str(error)
    finally:
        signal.alarm(0)


STEADY = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


# Would catch: any other exception than ours from anything that a file may hold, checksums and all.
@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=FEW, **STEADY)
@given(damages=DAMAGES)
def test_only_our_own_errors_come_out(tmp_path, name, damages):
    fuzz(name, tmp_path / "root", damages)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_only_our_own_errors_come_out_of_very_many(tmp_path, name):
    @settings(max_examples=SLOW.get(name, MANY), **STEADY)
    @given(damages=DAMAGES)
    def go(damages):
        fuzz(name, tmp_path / "root", damages)

    go()
