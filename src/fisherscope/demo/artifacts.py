"""What the demo leaves in a folder, and the manifest that says whether it is complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisherscope.errors import StoreError
from fisherscope.structures.manifest import described_by, read_json, write_json

MANIFEST = "manifest.json"
MODELS, TASKS = "models", "tasks"
FORMAT = "fisherscope-demo"

_STAGE = ".building."
_FIELDS = {"settings", "files", "train_losses", "seconds"}
# Longer than any build takes to write its files, so what is older was left by a killed one.
_STALE_SECONDS = 3600


@dataclass(frozen=True)
class DemoArtifacts:
    """The embedded real input: two models and three held-out tasks.

    Attributes:
        base: Checkpoint of the model trained on code and prose.
        instruct: Checkpoint of its copy fine-tuned on questions and answers.
        tasks: Task name to the JSONL file of its held-out rows.
        train_losses: Model name to its training loss at each step, in nats per token.
        seconds: How long the build took when it was made.
        reused: Whether it was there already.
    """

    base: Path
    instruct: Path
    tasks: dict[str, Path]
    train_losses: dict[str, tuple[float, ...]]
    seconds: float
    reused: bool


def find(out: Path, settings: Mapping[str, Any]) -> DemoArtifacts | None:
    """Look for a complete earlier build with the same settings.

    Args:
        out: The demo's folder; it need not exist.
        settings: What the build depends on.

    Returns:
        The earlier build, or ``None`` if there is none, or one with other settings, or only
        a partial or changed one.

    Raises:
        StoreError: If the folder is a file or holds files of that name which no build made.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file, not a folder; choose another folder for the demo")
    content = _manifest(out)
    if content is None:
        for name in (MANIFEST, MODELS, TASKS):
            if (out / name).exists():
                raise StoreError(
                    f"{out / name} exists and the demo did not make it, so it is not "
                    "overwritten; choose another folder for the demo"
                )
        return None
    if not content.keys() >= _FIELDS or content["settings"] != settings:
        return None
    try:
        with described_by(out / MANIFEST):
            files = [(out / name, digest) for name, digest in content["files"].items()]
            whole = all(file.is_file() and _sha256(file) == digest for file, digest in files)
            return _artifacts(out, content, reused=True) if whole else None
    except StoreError:
        return None


def publish(out: Path, content: Mapping[str, Any], fill: Callable[[Path], None]) -> DemoArtifacts:
    """Write a build so that its manifest appears only once everything else is in place.

    An earlier build is replaced; other files in the folder are left alone.

    Args:
        out: The demo's folder, on which :func:`find` found no fault.
        content: The manifest without its list of files: ``settings``, ``train_losses`` and
            ``seconds``.
        fill: Called with an empty folder; writes the models and tasks into it.

    Returns:
        The build.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=out))
    try:
        fill(stage)
        files = {
            path.relative_to(stage).as_posix(): _sha256(path)
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        }
        whole = {"format": FORMAT, **content, "files": files}
        write_json(stage / MANIFEST, whole)
        write_json(stage / "partial.json", {"format": FORMAT})
        for path in stage.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        # From here to the last line the folder says of itself that it is partial.
        os.replace(stage / "partial.json", out / MANIFEST)
        for name in (MODELS, TASKS):
            shutil.rmtree(out / name, ignore_errors=True)
            os.replace(stage / name, out / name)
        os.replace(stage / MANIFEST, out / MANIFEST)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    stage.rmdir()
    return _artifacts(out, whole, reused=False)


def _artifacts(out: Path, content: Mapping[str, Any], *, reused: bool) -> DemoArtifacts:
    tasks = sorted(name for name in content["files"] if name.startswith(f"{TASKS}/"))
    return DemoArtifacts(
        base=out / MODELS / "base",
        instruct=out / MODELS / "instruct",
        tasks={Path(name).stem: out / name for name in tasks},
        train_losses={name: tuple(row) for name, row in content["train_losses"].items()},
        seconds=content["seconds"],
        reused=reused,
    )


def _manifest(out: Path) -> dict[str, Any] | None:
    if not (out / MANIFEST).is_file():
        return None
    try:
        content = read_json(out / MANIFEST)
    except StoreError:
        return None
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return content if ours else None


def _sweep(out: Path) -> None:
    for stale in out.glob(f"{_STAGE}*"):
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
