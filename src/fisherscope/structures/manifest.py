"""Manifests: one JSON file that says what a folder is and proves that it is intact.

It holds the size and SHA-256 of every other file and a checksum of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fisherscope.errors import FisherscopeError, StoreError

Migrations = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
NO_MIGRATIONS: Migrations = {}
# A manifest of a hundred thousand tensors, or the ids of ten million examples, are smaller.
LARGEST_JSON = 2**30

AGAIN = "Restore it from a copy, or delete the folder and make it again."


def seal(folder: Path, manifest: str, content: Mapping[str, Any]) -> None:
    """Write the manifest, the last file of a folder.

    Args:
        folder: The folder with everything else in it; sealed subfolders are included
            through their own manifests.
        manifest: Name of the manifest.
        content: What the manifest says, ready for JSON.
    """
    files = [p for p in folder.iterdir() if p.is_file()]
    files += folder.glob(f"*/{manifest}")
    body = {
        **content,
        "files": {p.relative_to(folder).as_posix(): file_record(p) for p in sorted(files)},
    }
    write_json(folder / manifest, signed(body))


def unseal(
    folder: Path, manifest: str, *, kind: str, version: int, migrations: Migrations = NO_MIGRATIONS
) -> dict[str, Any]:
    """Read a manifest and make sure that every file is as it was written.

    Args:
        folder: The folder.
        manifest: Name of the manifest.
        kind: What its ``format`` must be.
        version: What its ``format_version`` must be.
        migrations: How older versions become the next one. Default: none.

    Returns:
        The manifest's content, in the form of ``version``.

    Raises:
        StoreError: If a file is missing, truncated, changed or foreign; the message names
            the file.
    """
    body = read_signed(folder / manifest, kind=kind, version=version, migrations=migrations)
    for name, expected in body["files"].items():
        if problem := wrong_with(folder, name, expected):
            raise StoreError(problem)
    return body


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content with a checksum of itself.

    Args:
        content: Ready for JSON.

    Returns:
        The same with ``checksum``.
    """
    return {**content, "checksum": _checksum(content)}


def read_signed(
    path: Path, *, kind: str, version: int, migrations: Migrations = NO_MIGRATIONS
) -> dict[str, Any]:
    """Read what :func:`signed` made.

    Args:
        path: A JSON file.
        kind: What its ``format`` must be.
        version: What its ``format_version`` must be.
        migrations: Version to what makes the next one of its content. Default: none.

    Returns:
        The content without the checksum, in the form of ``version``.

    Raises:
        StoreError: If it is missing, foreign, of another version, or was changed.
    """
    body = read_json(path)
    if not isinstance(body, dict) or body.get("format") != kind:
        raise StoreError(f"{path} is not of the format {kind!r}. Check the path.")
    found = body.get("format_version")
    steps = range(found, version) if isinstance(found, int) else ()
    if not isinstance(found, int) or found > version or any(n not in migrations for n in steps):
        raise StoreError(
            f"{path} has format version {found!r}, but this version of fisherscope reads "
            f"{version}. Use the version that wrote it, or make the folder again."
        )
    checksum = body.pop("checksum", None)
    if checksum != _checksum(body):
        raise StoreError(f"{path} was changed after it was written. {AGAIN}")
    for number in steps:
        body = {**migrations[number](body), "format_version": number + 1}
    return body


# What nonsense in a file makes of the code that takes it for sense.
_SENSELESS = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, OSError
)  # fmt: skip


@contextmanager
def described_by(path: Path) -> Generator[None]:
    """Turn whatever goes wrong while rebuilding an object from a folder into one error.

    Args:
        path: The manifest.

    Yields:
        Nothing.

    Raises:
        StoreError: If the block raised because the content is not what it should be.
    """
    try:
        yield
    except StoreError:
        raise
    except (FisherscopeError, *_SENSELESS) as error:
        raise StoreError(
            f"{path} does not describe what it should ({error!r}): fisherscope did not write it. "
            "Make the folder again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON in ASCII.

    Args:
        path: The file.
        content: A value of plain types, without NaN or infinity.
    """
    path.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="ascii")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        StoreError: If it is missing or not JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is no file. {AGAIN}")
        if path.stat().st_size > LARGEST_JSON:
            raise StoreError(f"{path} is larger than 1 GiB: fisherscope did not write it. {AGAIN}")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"can't read {path}: {error}. Check the path. {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON ({error}): truncated or foreign. {AGAIN}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def file_record(path: Path) -> dict[str, Any]:
    """What is recorded of a file.

    Args:
        path: The file.

    Returns:
        Its size in ``bytes`` and its ``sha256``.
    """
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def wrong_with(folder: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    """Compare a file with its record.

    Args:
        folder: The folder of the record.
        name: Path of the file relative to it.
        expected: What :func:`file_record` said.

    Returns:
        What is wrong, naming the file, or ``None``.

    Raises:
        StoreError: If the name leads out of the folder.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise StoreError(f"{folder} records a file outside of itself ({name!r}): it is foreign.")
    path = folder / name
    if not path.is_file():
        return f"{path} is missing. {AGAIN}"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path} has {size} bytes instead of {expected['bytes']}. {AGAIN}"
    try:
        digest = _sha256(path)
    except OSError as error:
        return f"can't read {path}: {error}. Check its permissions."
    if digest != expected["sha256"]:
        return f"{path} was changed after it was written (SHA-256 differs). {AGAIN}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
