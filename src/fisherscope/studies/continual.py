"""How much a sequence of tasks is learnt, kept and forgotten: metrics of continual learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from fisherscope.errors import DataError, ParameterError
from fisherscope.results import Result

Outcome = Literal["ok", "one_seed"]


@dataclass(frozen=True, eq=False)
class Continual(Result):
    """Metrics of training on T tasks in a row, with intervals over seeds.

    Attributes:
        n_seeds: Number of runs.
        n_tasks: Number of tasks.
        level: Coverage of the intervals.
        outcome: ``"ok"``, or ``"one_seed"``: no interval.
        metrics: Metric to its value in each run, float64 ``[n_seeds]``.
    """

    n_seeds: int
    n_tasks: int
    level: float
    outcome: Outcome
    metrics: dict[str, np.ndarray]

    def to_frame(self) -> pd.DataFrame:
        """One row per metric.

        Returns:
            Columns ``metric``, ``value`` (mean over seeds), ``se``, ``low`` and ``high``
            (Student's t interval of the mean; NaN with one seed), ``n_seeds``.
        """
        rows = []
        for name, values in self.metrics.items():
            se = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            half = se * stats.t.ppf((1 + self.level) / 2, max(len(values) - 1, 1))
            mean = float(values.mean())
            rows.append((name, mean, float(se), mean - half, mean + half, self.n_seeds))
        columns = pd.Index(["metric", "value", "se", "low", "high", "n_seeds"])
        return pd.DataFrame(rows, columns=columns)


def continual_metrics(
    accuracy: ArrayLike,
    *,
    untrained: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    level: float = 0.95,
) -> Continual:
    r"""Metrics of continual learning from the matrix of accuracies.

    With :math:`R_{ij}` the accuracy on task j after training on tasks 1 to i:

    - ``ACC`` :math:`= \frac1T \sum_j R_{Tj}`, the mean accuracy at the end;
    - ``BWT`` :math:`= \frac1{T-1} \sum_{j<T} (R_{Tj} - R_{jj})`, backward transfer;
    - ``FWT`` :math:`= \frac1{T-1} \sum_{j>1} (R_{j-1,j} - b_j)`, forward transfer over the accuracy
      b of the model before any training (all three Lopez-Paz and Ranzato, 2017);
    - ``forgetting`` :math:`= \frac1{T-1} \sum_{j<T} (\max_{i<T} R_{ij} - R_{Tj})`;
    - ``intransigence`` :math:`= \frac1T \sum_j (a^*_j - R_{jj})` against the accuracy
      :math:`a^*` of a reference that may see all tasks so far (both Chaudhry et al., 2018; their
      intransigence is that of one task, here their mean);
    - ``learning`` :math:`= \frac1T \sum_j R_{jj}`.

    Args:
        accuracy: ``[T, T]``, or ``[n_seeds, T, T]`` for several runs; rows are the tasks trained on
            so far, columns those measured. Losses negated will do as well.
        untrained: b, ``[T]`` or ``[n_seeds, T]``. Default: ``None``, no ``FWT``.
        reference: :math:`a^*`, ``[T]`` or ``[n_seeds, T]``. Default: ``None``, no
            ``intransigence``.
        level: Coverage of the intervals, between 0 and 1. Default: ``0.95``.

    Returns:
        The metrics per seed, with intervals of their means in
        :meth:`~Continual.to_frame`.

    Raises:
        DataError: If a shape is wrong, there are fewer than two tasks, or a number is not finite.
        ParameterError: If the level is out of range.
    """  # noqa: DOC502 (raised by callees)
    if not 0 < level < 1:
        raise ParameterError(f"level={level!r} must be between 0 and 1.")
    r = np.asarray(accuracy, dtype=np.float64)
    r = r[None] if r.ndim == 2 else r
    if r.ndim != 3 or r.shape[1] != r.shape[2] or not len(r):
        raise DataError(
            f"accuracy has shape {np.shape(accuracy)}; pass [tasks, tasks], or [seeds, tasks, "
            "tasks]."
        )
    seeds, tasks = r.shape[:2]
    if tasks < 2:
        raise DataError("accuracy is of one task only; nothing can be forgotten before a second.")
    _check_finite("accuracy", r)
    own = np.diagonal(r, axis1=1, axis2=2)
    last, earlier = r[:, -1], r[:, -1, :-1]
    found = {
        "ACC": last.mean(1),
        "BWT": (earlier - own[:, :-1]).mean(1),
        "forgetting": (r[:, :-1, :-1].max(1) - earlier).mean(1),
        "learning": own.mean(1),
    }
    if untrained is not None:
        b = _per_task("untrained", untrained, seeds, tasks)
        ahead = np.diagonal(r, offset=1, axis1=1, axis2=2)
        found["FWT"] = (ahead - b[:, 1:]).mean(1)
    if reference is not None:
        found["intransigence"] = (_per_task("reference", reference, seeds, tasks) - own).mean(1)
    return Continual(seeds, tasks, level, "ok" if seeds > 1 else "one_seed", found)


def _per_task(name: str, values: ArrayLike, seeds: int, tasks: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in {(tasks,), (seeds, tasks)}:
        raise DataError(f"{name} has shape {array.shape}; pass {(tasks,)} or {(seeds, tasks)}.")
    _check_finite(name, array)
    return np.broadcast_to(array, (seeds, tasks))


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{name} is not finite at {place}; leave runs that diverged out.")
