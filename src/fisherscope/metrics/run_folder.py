"""The folder that a run leaves: checked before anything long, written file by file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fisherscope.errors import ConfigError, StoreError
from fisherscope.metrics.plain_yaml import plain_yaml
from fisherscope.results import plain
from fisherscope.structures.io import MANIFEST
from fisherscope.structures.manifest import read_json

CONFIG = "config.yaml"
RESULTS = "results.json"
REPORT = "report.html"
FISHER = "fisher"
TABLES = "tables"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_LOCKED = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_out(out: Path) -> None:
    """Find out whether a run may write to a folder, leaving no trace.

    Args:
        out: The folder; it need not exist yet.

    Raises:
        StoreError: If it is a file, holds something else than a run, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file, not a folder; choose another --out")
    if out.is_dir():
        entries = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        ours = _is_run(out) or any((out / name / MANIFEST).is_file() for name in entries)
        if entries and not ours:
            raise StoreError(
                f"{out} is not empty and holds no run (it has {', '.join(sorted(entries)[:3])}); "
                "choose another --out, or a new folder inside it"
            )
    folder = nearest_folder(out)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0")


def _is_run(out: Path) -> bool:
    """Whether a folder holds what a run writes, and not just a file of the same name."""
    if (out / FISHER).is_dir():
        return True
    try:
        config = plain_yaml((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return False
    return isinstance(config, dict) and {"model", "tasks", "out"} <= set(config)


def check_space(out: Path, needed: int) -> None:
    """Find out whether the disk has room for a run.

    Args:
        out: The folder of the run; it need not exist yet.
        needed: Rough number of bytes that the run will write.

    Raises:
        StoreError: If less than that is free.
    """
    free = shutil.disk_usage(nearest_folder(out)).free
    if free < needed:
        raise StoreError(
            f"{out} has {free / 1e9:.2f} GB free and the run needs about {needed / 1e9:.2f} GB; "
            "free some space, choose an --out on another disk, or estimate fewer --parameters"
        )


def nearest_folder(path: Path) -> Path:
    """The deepest folder on a path that exists already.

    Args:
        path: A path, existing or not.

    Returns:
        The path itself if it is a folder, otherwise its nearest existing parent.

    Raises:
        StoreError: If a file stands where a folder is needed.
    """
    path = path.absolute()
    while not path.is_dir():
        if path.exists():
            raise StoreError(f"{path} is a file where a folder is needed; choose another --out")
        path = path.parent
    return path


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn what the operating system says about a failed write into a clear error.

    Args:
        path: What is being written, for the message.

    Yields:
        Nothing.

    Raises:
        StoreError: If the disk is full, the folder is read-only, or the write fails.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(
                f"{path}: the disk is full; free some space and run the same command again, what "
                "is finished is kept"
            ) from error
        why = "" if error.errno in _LOCKED else f" ({error.strerror or error})"
        raise StoreError(f"{path} cannot be written{why}; choose another --out") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: The file; its folder is made if need be.
        content: What goes into it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files that nobody else may read; results are not secret.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain values as JSON, as a whole or not at all.

    Args:
        path: The file.
        value: Its content; numbers that are not finite become ``null``.
    """
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as parquet files, each as a whole or not at all.

    Args:
        folder: Where they go.
        tables: File name without suffix to table; empty ones are written too.
    """
    for name, table in tables.items():
        write_bytes(folder / f"{name}.parquet", table.to_parquet(index=False))


def read_results(run: Path) -> dict[str, Any]:
    """Read what a finished run found.

    Args:
        run: The folder of the run, or its ``results.json``.

    Returns:
        The content of ``results.json``.

    Raises:
        StoreError: If it is missing, damaged, or of a format that this version cannot read.
    """
    path = run / RESULTS if run.is_dir() else run
    if not path.exists():
        raise StoreError(
            f"{path} does not exist; finish the run with "
            f"`fisherscope analyze --config {path.parent / CONFIG}`"
        )
    results = read_json(path)
    if not isinstance(results, dict) or results.get("format") != 1:
        raise StoreError(f"{path} is not a result of this version of fisherscope")
    return results


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
