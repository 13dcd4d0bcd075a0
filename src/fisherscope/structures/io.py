"""A Fisher as a folder: ``fisher.json``, sharded sums, the ledger, the halves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fisherscope.errors import ParameterError, StoreError
from fisherscope.structures.ema import FisherEMA
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.folder import read_folder, write_folder
from fisherscope.structures.identity import Identity
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.ledger import Ledger
from fisherscope.structures.manifest import described_by, read_json, seal, unseal, write_json
from fisherscope.structures.shards import read_tensors, write_tensors

MANIFEST = "fisher.json"
Shards = Callable[[Fisher, Path], None]
FORMAT = "fisherscope-fisher"
FORMAT_VERSION = 1
# What makes of a manifest of version n one of n + 1, under n.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_OWNED = re.compile(
    r"fisher\.json|half-[01]|ema|ledger\.json"
    r"|(sums|ledger)(-\d{5}-of-\d{5})?\.safetensors|(sums|ledger)\.safetensors\.index\.json"
)
_AVERAGE = "ema"
_ROUNDED = ("diagonal", "grouped")
STEM = "sums"
"""Beginning of the names of the files with the sums."""
_ARRAYS = ("squares", "tokens", "draw_variance", "draw_variance_total", "groups")


def save(
    fisher: Fisher,
    path: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    average: FisherEMA | None = None,
    shards: Shards | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a Fisher to a folder.

    The folder appears complete or not at all; a Fisher already there stays until then.
    Anything else at ``path``, or a folder that can't be written, raises
    :class:`StoreError`.

    Args:
        fisher: The Fisher.
        path: The folder; missing parents are made.
        max_shard_size: Largest safetensors file, in bytes or as text. Default: ``"5GB"``.
        average: The moving average that goes with it, written with it or not at all.
            Default: ``None``.
        shards: Puts the sums of the Fisher, and of its halves, into a folder of their own each.
            Default: ``None``, which writes them.
        dtype: As in :meth:`Fisher.save`. Default: ``None``.

    Raises:
        ParameterError: If the sums can't be written in that type.
    """
    rounded = fisher.structure in _ROUNDED and dtype == torch.bfloat16
    if dtype is not None and not rounded:
        raise ParameterError(
            f"a {fisher.structure} Fisher can't be saved with dtype={dtype}: only diagonal and "
            "grouped ones bear rounding, to torch.bfloat16. Leave dtype out"
        )

    def fill(folder: Path) -> None:
        if average is not None:
            average.save(folder / _AVERAGE)

        def write(f: Fisher, into: Path) -> None:
            write_tensors(into, STEM, f.sums, max_shard_size, dtype)

        _fill(fisher, folder, shards or write, average is not None)

    write_folder(path, MANIFEST, _OWNED, fill)


def load_average(path: str | Path) -> FisherEMA | None:
    """Read the moving average in the folder of a Fisher.

    Args:
        path: The folder that :func:`save` wrote; a damaged one raises :class:`StoreError`.

    Returns:
        The average, or ``None`` if the Fisher has none.
    """

    def read(folder: Path) -> FisherEMA | None:
        with described_by(folder / MANIFEST):
            averaged = read_json(folder / MANIFEST).get(_AVERAGE)
        return FisherEMA.load(folder / _AVERAGE) if averaged else None

    return read_folder(path, MANIFEST, read)


def load(path: str | Path) -> Fisher:
    """Read a Fisher from its folder and check every byte against the recorded hashes.

    Args:
        path: The folder that :func:`save` wrote.

    Returns:
        A Fisher of the class that was saved, equal to it bit by bit.

    Raises:
        StoreError: If the folder is missing, incomplete, changed, foreign or of another
            format version; the message names the file and the fix.
    """
    fisher = read_folder(path, MANIFEST, _read)
    if fisher is None:
        there = Path(path).exists()
        raise StoreError(
            f"{path} {f'has no {MANIFEST}' if there else 'does not exist'}, so there is no Fisher "
            "to load. Check the path, or make one with estimate(...).save(path)."
        )
    return fisher


def _fill(fisher: Fisher, folder: Path, shards: Shards, averaged: bool = False) -> None:
    ledger = fisher.ledger
    shards(fisher, folder)
    arrays = {name: getattr(ledger, name) for name in _ARRAYS}
    write_tensors(
        folder,
        "ledger",
        {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None},
    )
    write_json(folder / "ledger.json", {"ids": ledger.ids, "tensors": ledger.tensors})
    for number, half in enumerate(fisher.halves or ()):
        (folder / f"half-{number}").mkdir()
        _fill(half, folder / f"half-{number}", shards)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "structure": fisher.structure,
        "identity": fisher.identity.to_json(),
        "n_units": fisher.n_units,
        "n_examples": fisher.n_examples,
        "n_tokens": fisher.n_tokens,
        "coverage": fisher.coverage,
        "skipped": fisher.skipped,
        "halves": fisher.halves is not None,
    }
    if averaged:
        content[_AVERAGE] = True
    if fisher.layout:
        content["layout"] = [block.to_json() for block in fisher.layout]
    seal(folder, MANIFEST, content)


def _read(folder: Path) -> Fisher:
    with described_by(folder / MANIFEST):
        content = unseal(
            folder, MANIFEST, kind=FORMAT, version=FORMAT_VERSION, migrations=MIGRATIONS
        )
        return _rebuild(content, folder)


def _rebuild(content: dict[str, Any], folder: Path) -> Fisher:
    ledger = read_json(folder / "ledger.json")
    arrays: dict[str, np.ndarray] = {
        name: tensor.numpy() for name, tensor in read_tensors(folder, "ledger").items()
    }
    sums = {
        key: total.float() if total.dtype == torch.bfloat16 else total
        for key, total in read_tensors(folder, STEM).items()
    }
    identity = Identity.from_json(content["identity"])
    halves = (_read(folder / "half-0"), _read(folder / "half-1")) if content["halves"] else None
    layout = tuple(BlockLayout.from_json(block) for block in content.get("layout", ()))
    if type(content["n_units"]) is not int or content["n_units"] < 0:
        raise ValueError("n_units is not a count")
    # Files have no order: sums by parameter come back in the model's, others by their keys'.
    order = sorted(sums) if layout else identity.parameters
    return Fisher.of_structure(content["structure"])(
        identity=identity,
        sums={key: sums[key] for key in order},
        ledger=Ledger(ids=_texts(ledger["ids"]), tensors=_texts(ledger["tensors"]), **arrays),
        coverage=dict(zip(content["coverage"], _texts(content["coverage"].values()), strict=True)),
        n_units=content["n_units"],
        halves=halves,
        skipped=_texts(content["skipped"]),
        layout=layout,
    )


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(values)
    if isinstance(values, str) or not all(isinstance(value, str) for value in found):
        raise TypeError("what is not text stands among names")
    return found
