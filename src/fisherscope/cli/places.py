"""Where saved Fishers are: a run, a store, or one Fisher's own folder."""

from __future__ import annotations

from pathlib import Path

from fisherscope.errors import StoreError
from fisherscope.metrics.run_folder import CONFIG, FISHER, RESULTS
from fisherscope.store import FisherStore
from fisherscope.structures.io import MANIFEST


def is_run(path: Path) -> bool:
    """Whether a folder was left by ``analyze``.

    Args:
        path: A folder.

    Returns:
        True if it has results, a config or Fishers in the places of a run.
    """
    return any((path / name).is_file() for name in (CONFIG, RESULTS)) or (path / FISHER).is_dir()


def is_fisher(path: Path) -> bool:
    """Whether a folder holds one saved Fisher.

    Args:
        path: A folder.

    Returns:
        True if it does.
    """
    return (path / MANIFEST).is_file()


def open_store(path: Path) -> FisherStore:
    """Open the store of a run, or a store itself.

    Args:
        path: A folder.

    Returns:
        The store.

    Raises:
        StoreError: If there is no such folder, or nothing of ours in it.
    """
    if not path.is_dir():
        raise StoreError(f"{path} does not exist; give the folder of a run or of a store")
    store = FisherStore(path / FISHER if is_run(path) else path)
    if not len(store):
        raise StoreError(
            f"{path} holds no Fisher; make one with `fisherscope estimate` or `fisherscope analyze`"
        )
    return store
