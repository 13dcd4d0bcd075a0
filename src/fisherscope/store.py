"""Task name to Fisher and moving average, in memory or in a directory."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from urllib.parse import quote, unquote

from fisherscope.engine.mapped import is_mapped
from fisherscope.errors import ParameterError, StoreError, TaskError
from fisherscope.structures.ema import FisherEMA
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.folder import find_folder, folder_names, remove_folder, stamp
from fisherscope.structures.io import MANIFEST, load, load_average, save

# The empty name needs a folder too; a quoted name is never a lone percent sign.
_EMPTY = "%"
# Most file systems allow 255 bytes, and a folder being replaced has a prefix.
_LONGEST = 240
_SHOWN = 20


class UnknownTaskError(TaskError, KeyError):
    """A task that the store doesn't hold; also a ``KeyError``, as every mapping raises."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class FisherStore(MutableMapping[str, Fisher]):
    """A mapping from task to Fisher that several analyses can share.

    Without a path it lives in memory. With one, every task is a folder in that directory:
    Fishers are written when set, read and verified when first asked for, and kept, so
    whoever shares a store gets the same object. A task that another process has replaced
    since is read again. Iteration is in alphabetical order. Any text is a task name.

    A task that is followed along a training run has a moving average beside its Fisher
    (:meth:`ema`); both are set, written and removed together.

    Attributes:
        path: The directory, or ``None``.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Open a store; the directory is made when the first Fisher is set.

        Args:
            path: Directory, existing or not; ``None`` keeps everything in memory.

        Raises:
            StoreError: If the path is a file.
        """
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; a store needs a directory.")
        self._memory: dict[str, Fisher] = {}
        self._averages: dict[str, FisherEMA | None] = {}
        self._used: dict[str, None] = {}
        self._stamps: dict[str, tuple[int, ...] | None] = {}

    def __getitem__(self, task: str) -> Fisher:
        """The Fisher of a task.

        Args:
            task: Name of the task; an unknown one raises :class:`UnknownTaskError`, which
                names the known ones.

        Returns:
            The same object for everybody who shares this store.
        """
        self._open(task)
        if task not in self._memory:
            self._memory[task] = load(self._folder(task))
        return self._memory[task]

    def ema(self, task: str) -> FisherEMA | None:
        """The moving average of a task.

        Args:
            task: Name of the task; an unknown one raises :class:`UnknownTaskError`.

        Returns:
            The same object for everybody who shares this store; ``None`` if the task has a
            Fisher only.
        """
        self._open(task)
        if task not in self._averages:
            self._averages[task] = load_average(self._folder(task))
        return self._averages[task]

    def __setitem__(self, task: str, fisher: Fisher) -> None:
        """Keep a Fisher under a task, replacing what was there before, its average included.

        Args:
            task: Name of the task.
            fisher: Its Fisher; as for :meth:`put`.
        """
        self.put(task, fisher)

    def put(self, task: str, fisher: Fisher, ema: FisherEMA | None = None) -> None:
        """Keep a Fisher and its moving average under a task, replacing what was there before.

        Args:
            task: Name of the task.
            fisher: Its Fisher.
            ema: Its moving average. In a directory both appear at once. Default: ``None``.

        Raises:
            ParameterError: If it is not a Fisher.
            TaskError: If the task is not text.
        """
        if not isinstance(task, str):
            raise TaskError(f"task {task!r} is not text; use str({task!r}).")
        if not isinstance(fisher, Fisher):
            raise ParameterError(
                f"task {task!r}: a store holds Fishers, not {type(fisher).__name__}."
            )
        if self.path is not None:
            folder = self._folder(task)
            # An average is updated in place: if it can't be written, what counts is the file.
            self._averages.pop(task, None)
            save(fisher, folder, average=ema)
            self._stamps[task] = stamp(folder, MANIFEST)
            if any(map(is_mapped, fisher.sums.values())):
                fisher = load(folder)  # whose pages are those of the folder, not other ones
        self._memory[task] = fisher
        self._averages[task] = ema
        self._use(task)

    def __delitem__(self, task: str) -> None:
        """Remove a task and its folder.

        Args:
            task: Name of the task.

        Raises:
            UnknownTaskError: If the task is unknown.
        """
        if task not in self:
            raise UnknownTaskError(self._unknown(task))
        if self.path is not None:
            remove_folder(self._folder(task))
        self._forget(task)
        self._used.pop(task, None)

    def __iter__(self) -> Iterator[str]:
        if self.path is None:
            return iter(sorted(self._memory))
        if not self.path.is_dir():
            return iter(())
        tasks = {name: task_of(name) for name in folder_names(self.path, MANIFEST)}
        # A folder under another name than its task's was put there by somebody else.
        return iter(sorted(task for name, task in tasks.items() if _name(task) == name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, task: object) -> bool:
        if not isinstance(task, str):
            return False
        if self.path is None:
            return task in self._memory
        return find_folder(self._folder(task), MANIFEST) is not None

    def clear(self) -> None:
        """Remove all tasks, also damaged ones, without reading them."""
        for task in list(self):
            del self[task]

    def least_recent(self) -> list[str]:
        """The tasks in the order of their last use.

        Returns:
            First those that this store has not been asked for yet, the longest unwritten
            first; then by when they were last set or read here.
        """
        unused = [task for task in self if task not in self._used]
        if self.path is not None:
            unused.sort(key=lambda task: (stamp(self._folder(task), MANIFEST) or (0, 0))[1])
        return unused + [task for task in self._used if task in self]

    def nbytes(self, task: str) -> int:
        """How much room a task takes; asking is no use of it.

        Args:
            task: Name of the task.

        Returns:
            Bytes of its tensors in memory; with a path, bytes of its files.

        Raises:
            UnknownTaskError: If the task is unknown.
        """
        if task not in self:
            raise UnknownTaskError(self._unknown(task))
        if self.path is None:
            return _fisher_bytes(self._memory[task]) + _average_bytes(self._averages.get(task))
        folder = find_folder(self._folder(task), MANIFEST)
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder else 0

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else str(self.path)
        return f"FisherStore({where}, tasks={list(self)})"

    def _open(self, task: str) -> None:
        # Make sure that a task is known and that what is remembered of it still holds.
        if task not in self:
            raise UnknownTaskError(self._unknown(task))
        if self.path is None:
            self._use(task)
            return
        now = stamp(self._folder(task), MANIFEST)
        if task not in self._stamps or self._stamps[task] != now:
            self._forget(task)
            self._stamps[task] = now
        self._use(task)

    def _use(self, task: str) -> None:
        self._used.pop(task, None)
        self._used[task] = None

    def _forget(self, task: str) -> None:
        for remembered in (self._memory, self._averages, self._stamps):
            remembered.pop(task, None)

    def _folder(self, task: str) -> Path:
        assert self.path is not None
        name = _name(task)
        if len(name) > _LONGEST:
            raise TaskError(
                f"task {task[:40]!r}... makes a folder name of {len(name)} characters, more than "
                f"{_LONGEST}. Use a shorter name."
            )
        return self.path / name

    def _unknown(self, task: object) -> str:
        known = list(self)
        shown = ", ".join(repr(name) for name in known[:_SHOWN]) or "none yet"
        rest = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        return f"unknown task {task!r}; known: {shown}{rest}."


def task_of(name: str) -> str:
    """The task whose folder has a name.

    Args:
        name: Of a folder in a store.

    Returns:
        The task.
    """
    if name == _EMPTY:
        return ""
    try:
        return unquote(name, errors="surrogatepass")
    except UnicodeDecodeError:
        return name  # no task has such a folder


def _name(task: str) -> str:
    name = quote(task, safe="", errors="surrogatepass") or _EMPTY
    # A leading dot would make "." and "..", or look like a folder being written.
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


def _fisher_bytes(fisher: Fisher) -> int:
    ledger = fisher.ledger
    arrays = (ledger.squares, ledger.tokens, ledger.draw_variance, ledger.draw_variance_total)
    held = sum(t.nbytes for t in fisher.sums.values())
    held += sum(array.nbytes for array in arrays if array is not None)
    return held + sum(map(_fisher_bytes, fisher.halves or ()))


def _average_bytes(ema: FisherEMA | None) -> int:
    return 0 if ema is None else sum(t.nbytes for t in ema.average.values())
