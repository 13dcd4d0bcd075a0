"""Eigenvectors of Kronecker factors on disk: each is written as soon as it is found."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fisherscope.distributed import Ranks
from fisherscope.structures.factors import Factor
from fisherscope.structures.folder import read_folder, write_folder
from fisherscope.structures.kfac import KFACFisher
from fisherscope.structures.manifest import described_by, seal, unseal
from fisherscope.structures.rooms import Disk
from fisherscope.structures.shards import read_tensors, write_tensors

MANIFEST = "factor.json"
FORMAT = "fisherscope-factor"
FORMAT_VERSION = 1

_OWNED = re.compile(
    r"factor\.json|vectors(-\d{5}-of-\d{5})?\.safetensors|vectors\.safetensors\.index\.json"
)


def decompose(
    basis: KFACFisher, folder: Path | None, ranks: Ranks, disk: Disk | None = None
) -> None:
    """Decompose the factors of a KFAC, going on from what the folder holds.

    Each rank decomposes some of them, those of like size at a time; afterwards all have the
    same bits.

    Args:
        basis: The KFAC; it knows its eigenvectors afterwards.
        folder: One folder per factor is made inside; ``None`` keeps nothing.
        ranks: The processes that share the work.
        disk: Where the eigenvectors are held. Default: ``None``, in memory.
    """
    factors = sorted(basis.factors.values(), key=len, reverse=True)
    for start in range(0, len(factors), ranks.world):
        some = factors[start : start + ranks.world]
        found = ranks.once(lambda some=some: [_known(basis, folder, f) for f in some])
        missing = [n for n, vectors in enumerate(found) if vectors is None]

        def mine(some: list[Factor] = some, missing: list[int] = missing) -> list[Tensor] | None:
            if ranks.rank >= len(missing):
                return None
            # Of a copy, which takes its decomposition in float64 with it.
            return replace(some[missing[ranks.rank]]).eigenvectors()

        for number, vectors in zip(missing, ranks.each(mine), strict=False):
            assert vectors is not None
            found[number] = vectors
            if folder is not None:
                ranks.once(lambda f=some[number], v=vectors: save_eigenvectors(folder, f, v))
        for factor, vectors in zip(some, found, strict=True):
            assert vectors is not None
            basis.eigenvectors[factor.name] = [disk.kept(v) for v in vectors] if disk else vectors


def _known(basis: KFACFisher, folder: Path | None, factor: Factor) -> list[Tensor] | None:
    if factor.name in basis.eigenvectors:
        return basis.eigenvectors[factor.name]
    return None if folder is None else load_eigenvectors(folder, factor)


def save_eigenvectors(folder: Path, factor: Factor, vectors: list[Tensor]) -> None:
    """Write the eigenvectors of a factor.

    Args:
        folder: Where the factors of this basis are; this one gets a folder inside.
        factor: The factor.
        vectors: One matrix per piece.
    """

    def fill(place: Path) -> None:
        write_tensors(place, "vectors", {str(i): v for i, v in enumerate(vectors)})
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "factor": _digest(factor)}
        seal(place, MANIFEST, content)

    write_folder(folder / _name(factor), MANIFEST, _OWNED, fill)


def load_eigenvectors(folder: Path, factor: Factor) -> list[Tensor] | None:
    """Read them again.

    Args:
        folder: As for :func:`save_eigenvectors`; damaged files raise :class:`StoreError`.
        factor: The factor.

    Returns:
        One matrix per piece, or ``None`` if there are none, or those of other numbers.
    """
    found = read_folder(folder / _name(factor), MANIFEST, _read)
    return found[1] if found is not None and found[0] == _digest(factor) else None


def check_eigenvectors(folder: Path) -> None:
    """Make sure that the eigenvectors of one factor can be read.

    Args:
        folder: That factor's own folder; a damaged one raises :class:`StoreError`.
    """
    read_folder(folder, MANIFEST, _read)


def _read(place: Path) -> tuple[str, list[Tensor]]:
    with described_by(place / MANIFEST):
        content = unseal(place, MANIFEST, kind=FORMAT, version=FORMAT_VERSION)
        found = read_tensors(place, "vectors")
        return content["factor"], [found[str(i)] for i in range(len(found))]


def _name(factor: Factor) -> str:
    # Names of parameters can be longer than names of files.
    return hashlib.blake2b(factor.name.encode(), digest_size=8).hexdigest()


def _digest(factor: Factor) -> str:
    digest = hashlib.blake2b(factor.name.encode(), digest_size=16)
    for piece in factor.pieces:
        digest.update(piece.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
