"""Is a folder with all that it holds still what was written? And if not, what has to go?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisherscope.errors import StoreError
from fisherscope.structures import eigenvectors, ema, io
from fisherscope.structures.folder import clear_leftover, is_leftover, is_transient, remove_folder
from fisherscope.structures.manifest import (
    described_by,
    file_record,
    read_signed,
    signed,
    wrong_with,
)

RECORD = "checksums.json"
FORMAT = "fisherscope-checksums"
FORMAT_VERSION = 1

# Manifest of each kind of folder, and how all of it is read.
_READERS: dict[str, Callable[[Path], object]] = {
    io.MANIFEST: lambda place: (io.load(place), io.load_average(place)),
    ema.MANIFEST: ema.FisherEMA.load,
    eigenvectors.MANIFEST: eigenvectors.check_eigenvectors,
}
_PARTS = ("sums", "ledger", "ema", "vectors")


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing in a folder.

    Attributes:
        path: The folder or file.
        kind: ``"folder"`` (a Fisher, an average, eigenvectors), ``"file"`` of a run, or
            ``"leftover"`` of a process that was killed.
        problem: What is wrong, or ``None``.
    """

    path: Path
    kind: str
    problem: str | None = None

    def repair(self) -> str:
        """Take away what is damaged, or put back what a killed process had set aside.

        Returns:
            What was done, a sentence without a full stop. A folder that is in use, or that
            can't be written, raises :class:`StoreError`.
        """
        if self.kind == "leftover":
            return clear_leftover(self.path, _READERS)
        if self.kind == "folder":
            remove_folder(self.path)
        else:
            self.path.unlink(missing_ok=True)
        return "removed"


def check(root: Path) -> Iterator[Finding]:
    """Read every file below a folder and compare it with what was recorded.

    Args:
        root: A run, a store, a checkpoint, or the folder of one Fisher.

    Yields:
        One finding for each folder with a manifest of its own, each file of a run's record,
        and each leftover; in the order of their paths.
    """
    manifest = next((name for name in _READERS if (root / name).is_file()), None)
    if manifest is not None:
        yield _checked(root, manifest)
        return
    names = sorted(os.listdir(root))
    if any(name.startswith(_PARTS) and ".safetensors" in name for name in names):
        yield Finding(root, "folder", f"{root} has lost its manifest ({', '.join(_READERS)})")
        return
    if RECORD in names:
        yield from _recorded(root)
    for name in names:
        place = root / name
        if is_leftover(place):
            yield Finding(place, "leftover", f"{place} was left by a process that was killed.")
        elif place.is_dir() and not place.is_symlink() and not is_transient(place):
            yield from check(place)


def record(root: Path) -> dict[str, Any]:
    """Size and SHA-256 of the files of a run, without what has a record of its own.

    Args:
        root: The folder of the run.

    Returns:
        The content of its ``checksums.json``.
    """
    files = {p.relative_to(root).as_posix(): file_record(p) for p in _files(root)}
    return signed({
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": dict(sorted(files.items())),
    })


def changed(root: Path, names: Iterable[str]) -> dict[str, Any]:
    """A run's record after some of its files were written again, or removed.

    Args:
        root: The folder of the run; a damaged record raises :class:`StoreError`.
        names: Paths relative to the run.

    Returns:
        The new content of its ``checksums.json``.
    """
    body = read_signed(root / RECORD, kind=FORMAT, version=FORMAT_VERSION)
    gone = set(names)
    files = {name: entry for name, entry in body["files"].items() if name not in gone}
    files |= {name: file_record(root / name) for name in gone if (root / name).is_file()}
    return signed({**body, "files": dict(sorted(files.items()))})


def _files(root: Path) -> Iterator[Path]:
    for place in root.iterdir():
        if place.name.startswith(".") or place.name == RECORD or place.is_symlink():
            continue
        if place.is_file():
            yield place
        elif place.is_dir() and not any((place / n).is_file() for n in (*_READERS, RECORD)):
            yield from _files(place)


def _checked(root: Path, manifest: str) -> Finding:
    try:
        _READERS[manifest](root)
    except StoreError as error:
        return Finding(root, "folder", str(error))
    return Finding(root, "folder")


def _recorded(root: Path) -> Iterator[Finding]:
    try:
        with described_by(root / RECORD):
            body = read_signed(root / RECORD, kind=FORMAT, version=FORMAT_VERSION)
            problems = {name: wrong_with(root, name, e) for name, e in body["files"].items()}
    except StoreError as error:
        yield Finding(root / RECORD, "file", str(error))
        return
    for name, problem in problems.items():
        yield Finding(root / name, "file", problem)
