"""Folders that appear complete or not at all, however many processes look on.

A folder is written beside its place, flushed to disk, and renamed into it, by one writer at a
time. A reader that finds the folder replaced while it reads starts again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from fisherscope.errors import StoreError
from fisherscope.structures.locks import LOCKS, WRITING, is_held, lock_file, only_one

T = TypeVar("T")

_SAVING, _REPLACED, _REMOVING = ".saving.", ".replaced.", ".removing."
# A reader that loses against writers so often will lose forever.
_ATTEMPTS = 100


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

    A folder that can't be written, is being written by another process, or holds something else
    raises :class:`StoreError`.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(_SAVING + target.name)
    with told(target):
        _refuse_foreign(target, manifest, owned)
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_one(target, WRITING):
            try:
                # What a killed writer left: it is dead, for the lock is here.
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                fill(temporary)
                _flush(temporary)
                _swap(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def told(target: Path) -> Generator[None]:
    """Say what could not be written.

    Args:
        target: What is written inside ``with``.

    Yields:
        Nothing.

    Raises:
        StoreError: If it can't be written.
    """
    try:
        yield
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
    # Twice: between two looks a writer may have finished its second rename.
    for place in (target, _backup(target), target):
        if (place / manifest).is_file():
            return place
        if place.exists():
            return None
    return None


def stamp(path: str | Path, manifest: str) -> tuple[int, ...] | None:
    """What changes when a folder is replaced.

    Args:
        path: The folder's name.
        manifest: Name of the file that marks such a folder.

    Returns:
        Inode, time and size of its manifest; ``None`` if there is none.
    """
    folder = find_folder(path, manifest)
    try:
        status = (folder / manifest).stat() if folder is not None else None
    except FileNotFoundError:
        return None
    return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)


def _state(path: str | Path, manifest: str) -> tuple[Path | None, tuple[int, ...] | None]:
    # Where as well as what: a folder that is set aside keeps its stamp.
    return find_folder(path, manifest), stamp(path, manifest)


def read_folder(path: str | Path, manifest: str, read: Callable[[Path], T]) -> T | None:
    """Read a folder that another process may be replacing.

    Args:
        path: The folder's name.
        manifest: Name of the file that marks such a folder.
        read: Called with the real path; checks what it reads.

    Returns:
        What ``read`` returned, or ``None`` if there is no such folder.

    Raises:
        StoreError: If it is damaged, or was replaced again and again while it was read.
    """
    for _ in range(_ATTEMPTS):
        before = _state(path, manifest)
        folder = before[0]
        if folder is None:
            if _state(path, manifest) == before:
                return None
            continue
        try:
            found = read(folder)
        except StoreError:
            if _state(path, manifest) == before:
                raise
        else:
            # What was verified may have been replaced before it was read.
            if _state(path, manifest) == before:
                return found
    raise StoreError(
        f"{path} was replaced {_ATTEMPTS} times while it was read; read it when its writer rests."
    )


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
        StoreError: If it can't be removed, or is being written.
    """
    target = Path(os.path.realpath(path))
    doomed = target.with_name(_REMOVING + target.name)
    try:
        with only_one(target, WRITING):
            # The predecessor first: it would take the folder's place.
            for leftover in (_backup(target), doomed, target.with_name(_SAVING + target.name)):
                shutil.rmtree(leftover, ignore_errors=True)
            if target.exists():
                target.replace(doomed)
                shutil.rmtree(doomed)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"can't remove {path}: {error}.") from error


def is_transient(path: Path) -> bool:
    """Whether this is a lock, or a folder on its way.

    Args:
        path: A file or folder.

    Returns:
        Whether its name says so.
    """
    return _kind(path) is not None


def is_leftover(path: Path) -> bool:
    """Whether a killed process has left this, rather than one that is still at work.

    Args:
        path: A file or folder.

    Returns:
        Whether it is transient, and no writer lives.
    """
    kind = _kind(path)
    if kind is None:
        return False
    lock = path if kind in LOCKS else lock_file(_target(path, kind), WRITING)
    return not is_held(lock)


def clear_leftover(path: Path, manifests: Collection[str]) -> str:
    """Remove what a killed process has left, or put it back if it is all that there is.

    Args:
        path: What :func:`is_leftover` found.
        manifests: Names of the files that mark whole folders.

    Returns:
        What was done. If somebody has begun to write, :class:`StoreError` is raised.
    """
    kind = _kind(path)
    assert kind is not None
    target = _target(path, kind)
    with only_one(target, WRITING):
        whole = any((path / name).is_file() for name in manifests)
        if kind == _REPLACED and whole and not target.exists():
            os.replace(path, target)
            _fsync(target.parent)
            return f"put back as {target.name}"
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return "removed"


def _kind(path: Path) -> str | None:
    kinds = (*LOCKS, _SAVING, _REPLACED, _REMOVING)
    return next((kind for kind in kinds if path.name.startswith(kind)), None)


def _target(path: Path, kind: str) -> Path:
    return path.with_name(path.name.removeprefix(kind))


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
    # Windows flushes only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
