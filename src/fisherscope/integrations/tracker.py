"""Fisher information followed along a Hugging Face training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fisherscope.analysis.access import squares
from fisherscope.data import examples
from fisherscope.errors import ParameterError
from fisherscope.estimation import estimate
from fisherscope.store import FisherStore
from fisherscope.structures import Fisher
from fisherscope.structures.vectors import total

if TYPE_CHECKING:
    from transformers import Trainer


class FisherTracker(TrainerCallback):
    """Estimates Fishers on fixed data while a model trains, and logs them through the Trainer.

    ``FisherTracker({"math": rows}, every=100).attach(trainer)``

    The training is bit for bit the same with and without it: the model's mode, gradients and
    random state are put back after each estimate, and no data loader is touched. Estimates are
    made at the end of every ``every`` th step, at each evaluation, and at the end; once per step.

    For every task three numbers are logged: ``fisher/TASK/trace`` and its standard error
    ``fisher/TASK/trace_se``, mean per unit of the estimate, and ``fisher/TASK/participation``, the
    share of parameters that the information is spread over: the participation ratio
    ``(sum F)**2 / sum F**2`` of the diagonal (or of the groups) over their number.

    Args:
        tasks: Task name to data, as :func:`fisherscope.estimate` takes it. It is read once, here.
        every: Steps between estimates. Default: ``None``, only at evaluations and at the end.
        store: Where the latest Fisher of each task is kept, under its name. Default: ``None``,
            nowhere.
        **options: Options of :func:`fisherscope.estimate`, such as ``parameters=`` or
            ``max_examples=``.

    Raises:
        ParameterError: If there is no task, or ``every`` is no positive integer.
    """

    def __init__(
        self,
        tasks: Mapping[str, Any],
        *,
        every: int | None = None,
        store: FisherStore | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(tasks, Mapping) or not tasks:
            raise ParameterError('tasks must name at least one data set: {"math": rows}.')
        if every is not None and (
            isinstance(every, bool) or not isinstance(every, int) or every < 1
        ):
            raise ParameterError(f"every={every!r} must be a positive integer, or None.")
        limit = options.pop("max_examples", None)
        # A shuffling loader draws from the global random state.
        with torch.random.fork_rng():
            self._rows = {name: examples(data, max_examples=limit) for name, data in tasks.items()}
        self._every, self._store = every, store
        self._options = {"progress": False, **options}
        self._log: Callable[[dict[str, float]], None] | None = None
        self._seen = -1
        self._records: list[dict[str, Any]] = []

    def attach(self, trainer: Trainer) -> Self:
        """Follow the training of a Trainer.

        Args:
            trainer: The Trainer; this callback is added to it.

        Returns:
            Self.
        """
        self._log = trainer.log
        trainer.add_callback(self)
        return self

    def to_frame(self) -> pd.DataFrame:
        """Everything so far.

        Returns:
            Columns ``step``, ``task``, ``trace``, ``se``, ``participation``, ``n_examples``.
        """
        columns = pd.Index(["step", "task", "trace", "se", "participation", "n_examples"])
        return pd.DataFrame(self._records, columns=columns)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Make sure that there is a Trainer to log through.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Unused.

        Raises:
            ParameterError: If there is none.
        """
        del args, state, control, kwargs
        if self._log is None:
            raise ParameterError(
                "the tracker is not attached: call tracker.attach(trainer) instead of passing it "
                "in callbacks=, which doesn't tell it what to log through."
            )
        self._seen = -1

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Estimate if it is time to.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Its model.
        """
        del args
        if self._every is not None and state.global_step % self._every == 0:
            self._estimate(kwargs["model"], state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Estimate beside an evaluation.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Its model.
        """
        del args
        self._estimate(kwargs["model"], state, control)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Estimate for the last time.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Its model.
        """
        del args
        self._estimate(kwargs["model"], state, control)

    def _estimate(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        if self._seen == state.global_step or not state.is_world_process_zero:
            return
        self._seen = state.global_step
        logs: dict[str, float] = {}
        for task, rows in self._rows.items():
            fisher = estimate(model, rows, **self._options)
            if self._store is not None:
                self._store[task] = fisher
            found = {
                "trace": fisher.trace(),
                "se": fisher.standard_error()[""],
                "participation": _participation(fisher),
            }
            self._records.append({
                "step": state.global_step,
                "task": task,
                **found,
                "n_examples": fisher.n_examples,
            })
            named = {"trace_se" if key == "se" else key: value for key, value in found.items()}
            logs |= {f"fisher/{task}/{key}": v for key, v in named.items() if math.isfinite(v)}
        assert self._log is not None
        # A record of ours would otherwise count as the one of the loss that is due.
        due = control.should_log
        self._log(logs)
        control.should_log = due


def _participation(fisher: Fisher) -> float:
    held = [t for t in squares(fisher).values() if t.numel()]
    first, second = sum(total(t) for t in held), sum(total(t, t) for t in held)
    return first**2 / second / sum(t.numel() for t in held) if second else math.nan
