"""Where numbers are kept while a model trains: beside it, on the CPU, or on disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fisherscope.errors import ParameterError, StoreError
from fisherscope.structures.folder import find_folder, write_folder
from fisherscope.structures.manifest import AGAIN, described_by, read_json, seal
from fisherscope.structures.shards import index_of, write_tensors

Storage = Literal["model", "cpu", "disk"]

_MANIFEST, _STEM = "kept.json", "kept"
_OWNED = re.compile(
    r"kept\.json|kept(-\d{5}-of-\d{5})?\.safetensors|kept\.safetensors\.index\.json"
)


class Shelf:
    """Keeps tensors in one place.

    Args:
        storage: ``"model"``, ``"cpu"`` or ``"disk"``.
        folder: Where on disk; for ``"disk"`` only.

    Raises:
        ParameterError: If the place is unknown, or it and the folder don't go together.
    """

    def __init__(self, storage: Storage, folder: str | Path | None) -> None:
        if storage not in get_args(Storage):
            raise ParameterError(
                f"storage={storage!r} is unknown; use one of {list(get_args(Storage))}."
            )
        if (storage == "disk") != (folder is not None):
            raise ParameterError(
                f"storage={storage!r} and folder={str(folder) if folder else None!r} don't go "
                'together: storage="disk" needs a folder, the others have none.'
            )
        self.storage, self.folder = storage, Path(folder) if folder is not None else None

    def keep(
        self, name: str, tensors: Mapping[str, Tensor], devices: Mapping[str, torch.device]
    ) -> Mapping[str, Tensor]:
        """Put tensors away.

        Args:
            name: What they are, once in a folder.
            tensors: The tensors, which are copied.
            devices: Where each belongs if it is kept beside the model.

        Returns:
            A mapping of the same keys; on disk it maps a file into memory when asked.
        """
        if self.folder is None:
            cpu = self.storage == "cpu"
            return {
                key: t.detach().to("cpu" if cpu else devices[key], copy=True)
                for key, t in tensors.items()
            }
        host = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        place = self.folder / name
        content = {"format": "fisherscope-kept", "format_version": 1}

        def fill(folder: Path) -> None:
            write_tensors(folder, _STEM, host)
            seal(folder, _MANIFEST, content)

        write_folder(place, _MANIFEST, _OWNED, fill)
        found = find_folder(place, _MANIFEST)
        assert found is not None
        return Mapped(found)

    def nbytes(self, *mappings: Mapping[str, Tensor]) -> dict[str, int]:
        """How much room tensors take.

        Args:
            mappings: What :meth:`keep` returned.

        Returns:
            This shelf's storage to bytes.
        """
        counted: Counter[str] = Counter()
        for mapping in {id(mapping): mapping for mapping in mappings}.values():
            counted[self.storage] += sum(tensor.nbytes for tensor in mapping.values())
        return dict(counted)


class Mapped(Mapping[str, Tensor]):
    """Tensors of safetensors files, mapped into memory anew each time one is asked for.

    Pages of the file are the operating system's to keep or drop: they are no memory of this
    process's own.

    Args:
        folder: What :func:`fisherscope.structures.shards.write_tensors` wrote to; one that was
            changed since raises :class:`StoreError`.
    """

    def __init__(self, folder: Path) -> None:
        place = folder / index_of(_STEM)
        with described_by(place):
            # Base names only: a foreign index must not make us read elsewhere.
            names = {key: Path(file).name for key, file in read_json(place)["weight_map"].items()}
        self._files = {key: folder / name for key, name in names.items()}

    def __getitem__(self, key: str) -> Tensor:
        place = self._files[key]
        try:
            if not place.is_file():
                raise OSError("it is missing, or no file")
            with safe_open(place, framework="pt") as file:
                return file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"can't read {key!r} from {place}: {error}. {AGAIN}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
