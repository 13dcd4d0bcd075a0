"""A Fisher whose sums are spread over ranks: each writes its own shards, the first the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from fisherscope.distributed import Ranks
from fisherscope.errors import StoreError
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.folder import told
from fisherscope.structures.io import STEM, save
from fisherscope.structures.locks import WRITING, only_one
from fisherscope.structures.manifest import read_json, write_json
from fisherscope.structures.shards import index_of


class Owners:
    """Which rank keeps which sums.

    Args:
        sizes: Parameters that can't be parted, to the bytes of their sums.
        world: Number of ranks.
    """

    def __init__(self, sizes: Mapping[tuple[str, ...], int], world: int):
        self._rank: dict[str, int] = {}
        loads = [0] * world
        for names, size in sorted(sizes.items(), key=lambda item: -item[1]):
            least = loads.index(min(loads))
            loads[least] += size
            self._rank |= dict.fromkeys(names, least)

    def of(self, key: str) -> int:
        """The rank that keeps a sum.

        Args:
            key: Of the sum: a parameter's name, or with what follows it.

        Returns:
            Its number.
        """
        return self._rank[key if key in self._rank else key.rpartition(":")[0]]


def hollow(fisher: Fisher, owners: Owners, rank: int) -> Fisher:
    """Put zeros that take no memory in the place of the sums of other ranks.

    Args:
        fisher: The Fisher; not for anybody's eyes afterwards.
        owners: Who keeps what.
        rank: This rank.

    Returns:
        A Fisher with this rank's sums.
    """
    for key, total in fisher.sums.items():
        if owners.of(key) != rank:
            fisher.sums[key] = placeholder(total)
    return fisher


def placeholder(total: Tensor) -> Tensor:
    """Zeros on the CPU in the shape and type of a tensor, in the memory of one.

    Args:
        total: Any tensor.

    Returns:
        A view that must not be written to.
    """
    return total.new_zeros((), device="cpu").expand(total.shape)


def save_spread(
    fisher: Fisher,
    path: str | Path,
    owners: Owners,
    ranks: Ranks,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a Fisher whose sums are spread over ranks, all of which make this call.

    The folder is one that :func:`fisherscope.load` reads, like that of a Fisher on one rank. It
    has to be the same for all ranks. What can't be written raises :class:`StoreError` on all.

    Args:
        fisher: With this rank's sums; everything else is the same on every rank.
        path: The folder.
        owners: Who keeps what.
        ranks: The processes.
        max_shard_size: Largest safetensors file, in bytes or as text. Default: ``"5GB"``.
    """
    target = Path(os.path.realpath(path))
    shards = target.with_name(f"{target.name}.shards")
    # By this name, what a killed writer leaves is known as such.
    staged = target.with_name(f".saving.{shards.name}")
    whole = {"": fisher}
    whole |= {f"half-{number}": half for number, half in enumerate(fisher.halves or ())}

    def fill(part: Fisher, folder: Path) -> None:
        (name,) = (name for name, one in whole.items() if one is part)
        _collect(staged / name, folder)

    with ExitStack() as stack:
        ranks.once(lambda: stack.enter_context(_staging(shards, staged)))
        for name, part in whole.items():
            _write(part, staged / name, owners, ranks, max_shard_size)
        ranks.once(lambda: save(fisher, path, max_shard_size=max_shard_size, shards=fill))


@contextmanager
def _staging(shards: Path, staged: Path) -> Generator[None]:
    with told(shards):
        shards.parent.mkdir(parents=True, exist_ok=True)
    with only_one(shards, WRITING):
        try:
            with told(shards):
                shutil.rmtree(staged, ignore_errors=True)
                staged.mkdir()
            yield
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _write(
    fisher: Fisher, folder: Path, owners: Owners, ranks: Ranks, max_shard_size: int | str
) -> None:
    """Write this rank's sums, in files numbered over all ranks."""
    mine = {k: total for k, total in fisher.sums.items() if owners.of(k) == ranks.rank}
    pattern = f"{ranks.rank}{{suffix}}"
    split = split_torch_state_dict_into_shards(
        mine, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    files = [split.filename_to_tensors[name] for name in sorted(split.filename_to_tensors)]
    counts = ranks.each(lambda: len(files))
    before, total = sum(counts[: ranks.rank]), sum(counts)

    def write() -> dict[str, str]:
        index: dict[str, str] = {}
        with told(folder):
            folder.mkdir(exist_ok=True)
            for number, keys in enumerate(files, before + 1):
                name = f"{STEM}-{number:05d}-of-{total:05d}.safetensors"
                shard = {key: mine[key].contiguous() for key in keys}
                save_file(shard, folder / name, metadata={"format": "pt"})
                index |= dict.fromkeys(keys, name)
        return index

    parts = ranks.each(write)
    index = {key: name for part in parts for key, name in part.items()}
    size = sum(total.numel() * total.element_size() for total in fisher.sums.values())
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    ranks.once(lambda: write_json(folder / index_of(STEM), content))


def _collect(staged: Path, folder: Path) -> None:
    """Move what all ranks have written to where it belongs."""
    wanted = {*read_json(staged / index_of(STEM))["weight_map"].values(), index_of(STEM)}
    for name in sorted(wanted):
        if not (staged / name).is_file():
            raise StoreError(
                f"{staged / name} was written by another rank, but is not here: every rank has to "
                "see the same folder. Choose one on a shared file system."
            )
        os.replace(staged / name, folder / name)
