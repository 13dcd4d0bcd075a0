"""Folders that appear complete or not at all.

A folder is written beside its place, flushed to disk, and renamed into it.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from fisherscope.errors import StoreError

_REPLACED = ".replaced."


def write_folder(
    path: str | Path, manifest: str, owned: re.Pattern[str], fill: Callable[[Path], None]
) -> None:
    """Write a folder so that others see the old one or the complete new one.

    Args:
        path: The folder. What is there already is replaced only if it is such a folder.
        manifest: Name of the file that marks such a folder.
        owned: Matches the names that ``fill`` may create; a folder with any other name in
            it is left alone.
        fill: Called with an empty folder; writes into it and seals it.

    Raises:
        StoreError: If the folder can't be written, or holds something else.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".saving.{uuid.uuid4().hex}")
    try:
        _refuse_foreign(target, manifest, owned)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            fill(temporary)
            _flush(temporary)
            _swap(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except StoreError:
        raise
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"can't write {target}: {error}. Check that the disk has room and that the parent "
            "is a folder you may write to. What was there before is unchanged."
        ) from error


def find_folder(path: str | Path, manifest: str) -> Path | None:
    """Where a folder is to be read.

    Args:
        path: The folder's name.
        manifest: Name of the file that marks such a folder.

    Returns:
        Its real path, or where a writer that was killed between its two renames left the old
        folder, or ``None`` if there is neither.
    """
    target = Path(os.path.realpath(path))
    for place in (target, _backup(target)):
        if (place / manifest).is_file():
            return place
        if place.exists():
            return None
    return None


def folder_names(parent: Path, manifest: str) -> list[str]:
    """Names of all such folders within a folder.

    Args:
        parent: The folder to list.
        manifest: Name of the file that marks such a folder.

    Returns:
        Sorted names that :func:`find_folder` finds.
    """
    listed = {p.name.removeprefix(_REPLACED) for p in parent.iterdir() if p.is_dir()}
    return sorted(
        name
        for name in listed
        if not name.startswith(".") and find_folder(parent / name, manifest) is not None
    )


def remove_folder(path: Path) -> None:
    """Delete a folder so that no other process sees half of it.

    Args:
        path: The folder, and with it what a killed writer left of its predecessor.

    Raises:
        StoreError: If it can't be removed.
    """
    doomed = path.with_name(f".removing.{uuid.uuid4().hex}")
    try:
        # The predecessor first: it would take the folder's place.
        shutil.rmtree(_backup(path), ignore_errors=True)
        if path.exists():
            path.replace(doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        raise StoreError(f"can't remove {path}: {error}.") from error


def _refuse_foreign(target: Path, manifest: str, owned: re.Pattern[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise StoreError(f"{target} is a file, not a folder. Choose another path.")
    names = set(os.listdir(target))
    foreign = sorted(name for name in names if not owned.fullmatch(name))
    if names and (foreign or manifest not in names):
        raise StoreError(
            f"{target} holds other things ({foreign[0] if foreign else f'no {manifest}'!r}) and "
            "is not overwritten. Choose another path, or empty the folder yourself."
        )


def _backup(target: Path) -> Path:
    # The root of the file system has no name, and no siblings either.
    return target.with_name(_REPLACED + target.name) if target.name else target


def _swap(temporary: Path, target: Path) -> None:
    backup = _backup(target)
    if target.exists():
        # A leftover beside a complete folder is older than it.
        shutil.rmtree(backup, ignore_errors=True)
        os.replace(target, backup)
    try:
        os.replace(temporary, target)
    except BaseException:
        if backup.exists() and not target.exists():
            os.replace(backup, target)
        raise
    _fsync(target.parent)
    shutil.rmtree(backup, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
