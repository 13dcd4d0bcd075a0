"""What the named classes share: one store, one configuration, one way to estimate."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fisherscope import specs
from fisherscope.arguments import check_list, check_whole, size_in_bytes
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.selection import select
from fisherscope.errors import ParameterError, TaskError
from fisherscope.estimation import estimate
from fisherscope.naming import under
from fisherscope.store import FisherStore
from fisherscope.structures import Fisher, FisherEMA
from fisherscope.structures.pooled import pool, recent

Source = Literal["mean", "ema"]


@dataclass(frozen=True)
class Seen:
    """What went into a task's Fisher.

    Attributes:
        updates: Updates of the moving average.
        n_examples: Examples; one that came twice counts twice.
        n_tokens: Supervised tokens.
    """

    updates: int
    n_examples: int
    n_tokens: int


class FisherBase:
    """Fishers of tasks along a training run, and everything that asks for them by name.

    For every task the store holds two averages of the same estimates: the plain mean over all
    that was seen (``store[task]``, a :class:`~fisherscope.structures.Fisher`), and the
    exponential moving average of recent ones (``store.ema(task)``, a
    :class:`~fisherscope.FisherEMA`). Instances that share a store share these objects.

    Attributes:
        store: Task to Fisher and average.
        config: How every Fisher here is estimated.
    """

    def __init__(
        self, store: FisherStore | None = None, config: FisherConfig | None = None
    ) -> None:
        """Use a store, or begin one.

        Args:
            store: Where Fishers are kept. Default: ``None``, a new one in memory.
            config: How Fishers are estimated. Default: ``None``, the defaults of
                :func:`fisherscope.estimate`.

        Raises:
            ParameterError: If one of them is something else.
        """
        for name, value, kind in (("store", store, FisherStore), ("config", config, FisherConfig)):
            if not isinstance(value, kind | None):
                raise ParameterError(
                    f"{name}= is a {type(value).__name__}; pass a {kind.__name__} or None."
                )
        self.store = FisherStore() if store is None else store
        self.config = DEFAULTS if config is None else config

    def update_fisher_ema(self, model: nn.Module, batch: Any, task: str = "default") -> Seen:
        r"""Take one more batch into a task's averages.

        With :math:`f_t` the Fisher of the batch at the weights of the moment,
        :math:`F_t = \beta F_{t-1} + (1-\beta) f_t` from :math:`F_0 = 0`, with
        ``config.ema_decay`` for :math:`\beta`; and the sums and counts of the plain mean grow
        by those of the batch. A training run shows examples again and changes the weights:
        every visit of an example counts (see :func:`fisherscope.structures.pooled.pool`), and
        the standard errors of the mean take visits of one example as one observation.

        Args:
            model: The model as it is now; it comes back untouched.
            batch: The batch, as :func:`fisherscope.estimate` takes it.
            task: Any text. Default: ``"default"``.

        Returns:
            What the task has seen by now.

        Raises:
            TaskError: If the task is not text.
            ParameterError: If the configured structure has no moving average. If the batch
                can't be averaged with those before (another architecture, unit, ...),
                ``IdentityError`` names what differs, and nothing has changed.
        """
        if not isinstance(task, str):
            raise TaskError(f"task {task!r} is not text; use str({task!r}).")
        structure = specs.base_name(self.config.structure)
        if structure not in {"diagonal", "grouped"}:
            raise ParameterError(
                f"config.structure={str(self.config.structure)!r} has no moving average (the mean "
                "of factors is not the factor of a mean): use 'diagonal' or 'grouped', or keep "
                "store[task] = fs.estimate(...)."
            )
        fisher = self._estimate(model, batch, self.config)
        known = task in self.store
        ema = self.store.ema(task) if known else None
        ema = FisherEMA(self.config.ema_decay) if ema is None else ema
        mean = pool(self.store[task], fisher) if known else fisher
        ema.update(fisher)
        self.store.put(task, mean, ema)
        return self.fisher_seen(task)

    def fisher_seen(self, task: str = "default") -> Seen:
        """How much went into a task's Fisher.

        Args:
            task: Name of the task; an unknown one raises ``TaskError``. Default: ``"default"``.

        Returns:
            Counts of updates, examples and tokens.
        """
        fisher, ema = self.store[task], self.store.ema(task)
        return Seen(0 if ema is None else ema.steps, fisher.n_examples, fisher.n_tokens)

    def get_bias_corrected_fisher_ema(self, task: str = "default") -> dict[str, Tensor]:
        r"""The moving average of a task, without the bias of having begun at zero.

        Args:
            task: Name of the task; one without an average raises ``TaskError`` and names
                those that have one. Default: ``"default"``.

        Returns:
            Parameter name to a new float32 tensor, mean per unit: :math:`F_t/(1-\beta^t)`, a
            constant from the first update on.
        """
        return self._ensure_fisher_ema_initialized(task).corrected()

    def reset_fisher_ema(self, task: str | None = None) -> None:
        """Forget a task, or all: mean, moving average and counts.

        Args:
            task: Name of the task; an unknown one raises ``TaskError``. Default: ``None``, all.
        """
        if task is None:
            self.store.clear()
        else:
            del self.store[task]

    def cleanup_fisher_ema(
        self,
        keep_tasks: Collection[str] | None = None,
        max_tasks: int | None = None,
        memory_limit: int | str | None = None,
    ) -> int:
        """Remove tasks from the store, the least recently used first.

        Args:
            keep_tasks: Remove all others, and none of these. Default: ``None``, any may stay
                and any may go.
            max_tasks: Remove until so many are left. Default: ``None``, no limit.
            memory_limit: Remove until the rest takes no more than this, in bytes or as text
                (``"2GB"``); in a directory the size of the files. Default: ``None``, no limit.

        Returns:
            Bytes freed; 0 without any of the three.

        Raises:
            ParameterError: If a limit is negative or no size, ``keep_tasks`` is no list, or what
                is to be kept is beyond a limit; nothing is removed then.
            TaskError: If a task to keep is unknown; nothing is removed then, either.
        """
        store = self.store
        if keep_tasks is not None and not isinstance(keep_tasks, Set):
            check_list("keep_tasks", keep_tasks, f"a list such as [{keep_tasks!r}]")
        if unknown := [task for task in keep_tasks or () if task not in store]:
            raise TaskError(f"keep_tasks: unknown task {unknown[0]!r}; known: {_listed(store)}.")
        most = size_in_bytes("memory_limit", memory_limit)
        if max_tasks is not None:
            check_whole("max_tasks", max_tasks, low=0)
        left = store.least_recent()
        sizes = {task: store.nbytes(task) for task in left}
        doomed = [task for task in left if keep_tasks is not None and task not in keep_tasks]
        left = [task for task in left if task not in doomed]
        while left and (limit := _beyond([sizes[task] for task in left], max_tasks, most)):
            if keep_tasks is not None:
                raise ParameterError(f"keep_tasks names {limit}. Keep fewer, or allow more.")
            doomed.append(left.pop(0))
        for task in doomed:
            del store[task]
        return sum(sizes[task] for task in doomed)

    def _ensure_fisher_ema_initialized(
        self, task: str = "default", model: nn.Module | None = None, batch: Any = None
    ) -> FisherEMA:
        """The moving average of a task; begun from a model and a batch if there is none yet."""
        known = task in self.store
        if (not known or self.store.ema(task) is None) and model is not None and batch is not None:
            self.update_fisher_ema(model, batch, task)
        ema = self.store.ema(task)
        if ema is None:
            have = [name for name in self.store if self.store.ema(name) is not None]
            raise TaskError(
                f"task {task!r} has a Fisher but no moving average; known with one: "
                f"{_listed(have)}. Call update_fisher_ema(model, batch, {task!r})."
            )
        return ema

    def _get_ema_fisher_for_task(
        self, task: str = "default", layers_prefix: str | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a task's moving average themselves, bias corrected, not copied."""
        average = self._ensure_fisher_ema_initialized(task).average
        return {name: average[name] for name in under(average, layers_prefix)}

    def _estimate_fisher_diagonal(
        self,
        model: nn.Module,
        batch: Any,
        n_samples: int | None = None,
        layers_prefix: str | None = None,
    ) -> dict[str, Tensor]:
        """The exact diagonal of a batch, mean per unit: ``fs.estimate(...).diagonal()``."""
        config = dataclasses.replace(
            self.config,
            structure="diagonal",
            max_examples=self.config.max_examples if n_samples is None else n_samples,
        )
        return self._estimate(model, batch, config, layers_prefix).diagonal()

    def _estimate(
        self,
        model: nn.Module,
        batch: Any,
        config: FisherConfig,
        layers_prefix: str | None = None,
    ) -> Fisher:
        options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        del options["ema_decay"]
        options |= self._under(model, config, layers_prefix)
        return estimate(model, batch, progress=False, **options)

    def _under(
        self, model: nn.Module, config: FisherConfig, layers_prefix: str | None
    ) -> dict[str, Any]:
        """The option that asks for the configured parameters under a prefix only."""
        if layers_prefix is None:
            return {}
        names = under(select(model, config.parameters), layers_prefix)
        return {"parameters": [glob.escape(name) for name in names]}

    def _fisher(self, task: str, source: Source = "mean") -> Fisher:
        """The Fisher that a task's name stands for."""
        if source == "mean":
            return self.store[task]
        if source != "ema":
            raise ParameterError(f"source={source!r} is unknown; use 'mean' or 'ema'.")
        return recent(self._ensure_fisher_ema_initialized(task), self.store[task])


def _listed(tasks: Collection[str]) -> str:
    return ", ".join(map(repr, tasks)) or "none yet"


def _beyond(sizes: list[int], max_tasks: int | None, most: int | None) -> str:
    # What is more than allowed, or nothing.
    if max_tasks is not None and len(sizes) > max_tasks:
        return f"{len(sizes)} tasks, more than max_tasks={max_tasks}"
    if most is not None and sum(sizes) > most:
        return f"tasks of {sum(sizes)} bytes, more than memory_limit={most}"
    return ""
