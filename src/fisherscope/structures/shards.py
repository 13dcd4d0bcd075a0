"""Named tensors as safetensors shards with an index, as the Hugging Face libraries write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fisherscope.errors import StoreError
from fisherscope.structures.manifest import AGAIN, read_json, write_json


def write_tensors(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write named tensors as safetensors shards with an index.

    Args:
        folder: Where to write.
        stem: Beginning of the file names.
        tensors: Names to CPU tensors.
        max_shard_size: Bytes, or text such as ``"5GB"``; a larger tensor gets its own shard.
            Default: ``"5GB"``.
        dtype: Type that they are written in. Default: ``None``, their own.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].to(dtype).contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(folder / index_of(stem), index)


def index_of(stem: str) -> str:
    """Name of the file that says which tensor is in which shard.

    Args:
        stem: Beginning of the file names.

    Returns:
        The name.
    """
    return f"{stem}.safetensors.index.json"


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` wrote.

    Args:
        folder: Where to read.
        stem: Beginning of the file names.

    Returns:
        Names to CPU tensors.

    Raises:
        StoreError: If a shard can't be read; the message names it.
    """
    index = read_json(folder / index_of(stem))
    tensors = {}
    # Base names only: a foreign index must not make us read elsewhere.
    for file in sorted({Path(file).name for file in index["weight_map"].values()}):
        if not (folder / file).is_file():
            raise StoreError(f"{folder / file} is missing, or no file. {AGAIN}")
        try:
            tensors.update(load_file(folder / file))
        except (OSError, SafetensorError) as error:
            raise StoreError(f"can't read {folder / file}: {error}. {AGAIN}") from error
    return tensors
