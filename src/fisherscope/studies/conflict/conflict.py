"""Do the gradients of several tasks pull against each other: where, and through which examples?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError, TaskError
from fisherscope.naming import Selection
from fisherscope.preparation import prepare
from fisherscope.results import Result
from fisherscope.structures.intervals import RESAMPLES
from fisherscope.studies.conflict.cosines import cosines
from fisherscope.studies.conflict.harm import tables
from fisherscope.studies.conflict.metric import Fishers, inverse_fisher
from fisherscope.studies.conflict.rows import gather
from fisherscope.studies.conflict.sketch import RowPlan, plan_rows

MEMORY = 2 << 30
PERMUTATIONS, MOST_PAIRS = 200, 100


@dataclass(frozen=True, eq=False)
class Conflict(Result):
    r"""How the gradients of tasks stand to each other.

    ``on`` is the task that is hurt, ``by`` the one that steps; a positive harm raises the loss.
    Metrics: ``"plain"``, and ``"natural"`` for products :math:`g^\top (F + \lambda)^{-1} g'`.

    Attributes:
        cosines: A row per pair of tasks, scope (layer, or ``"all"``) and metric: ``cosine`` of
            the mean gradients with ``low`` and ``high``; ``inner``, their product per token of
            each; ``sketch_sd``, the standard deviation that sketches add to it (within its
            interval); ``outcome``: ``"conflict"`` (interval below zero), ``"aligned"``,
            ``"not_resolved"`` (it holds zero, or a norm's does), ``"too_few_examples"``.
        norms: A row per task, scope and metric: unbiased ``squared_norm`` of the mean gradient
            per token with its interval; ``biased``, the squared norm of the plain mean, which
            noise inflates; ``outcome``.
        examples: A row per example of ``by``: mean ``harm`` to the examples of ``on``, its
            studentised ``statistic``, ``p`` and ``q``.
        pairs: The most harmful pairs of examples, with ``p`` against pairs within ``on``.
        tests: A row per test: how many were tested and found (``q`` at most ``level`` and harm
            above zero), the least ``p`` possible, and the ``outcome``: ``"found"``,
            ``"none_significant"``, ``"too_few_examples"``.
        level: Largest q that counts as found.
        plan: How gradients were kept: exact, or as sketches.
        metric: What F is in the natural metric, in words.
        damping: :math:`\lambda`, in the units of F.
        n_examples: Task to number of examples.
        n_tokens: Task to number of supervised tokens.
    """

    cosines: pd.DataFrame
    norms: pd.DataFrame
    examples: pd.DataFrame
    pairs: pd.DataFrame
    tests: pd.DataFrame
    level: float
    plan: RowPlan
    metric: str
    damping: float
    n_examples: dict[str, int]
    n_tokens: dict[str, int]

    def to_frame(self) -> pd.DataFrame:
        """The cosines.

        Returns:
            A new data frame, a row per pair of tasks, scope and metric.
        """
        return self.cosines.copy()

    def findings(self) -> list[str]:
        """What was found, in sentences.

        Returns:
            A sentence per pair of tasks, then how many examples were found harmful.
        """
        lines = []
        plain = [
            row
            for row in self.cosines.to_dict("records")
            if row["metric"] == "plain" and row["scope"] == "all"
        ]
        said = {
            "conflict": "point against each other",
            "aligned": "point the same way",
            "not_resolved": "are not resolved from being orthogonal",
            "too_few_examples": "have too few examples to tell",
        }
        for row in plain:
            lines.append(
                f"The gradients of {row['task_a']} and {row['task_b']} {said[row['outcome']]}: "
                f"cosine {row['cosine']:.2f} [{row['low']:.2f}, {row['high']:.2f}]."
            )
        found = [
            row
            for row in self.tests.to_dict("records")
            if (row["outcome"], row["metric"], row["level"]) == ("found", "plain", "example")
        ]
        lines += [
            f"{row['n_found']} of {row['n_tests']} examples of {row['by']} hurt {row['on']} more "
            f"than its others do (q ≤ {self.level:g})."
            for row in found
        ]
        return lines


@needs_whole
@torch.inference_mode(False)
def conflict(
    model: nn.Module,
    tasks: Mapping[str, Any],
    *,
    fishers: Fishers | None = None,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    damping: float = 1e-3,
    memory_limit: int | str = MEMORY,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    level: float = 0.05,
    most_pairs: int = MOST_PAIRS,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    progress: bool = False,
) -> Conflict:
    r"""Conflict between the gradients of tasks: by layer, and example by example.

    The cosine of two tasks' mean gradients says whether a small step for one costs the other
    (Yu et al., 2020); in the metric of the inverse Fisher, whether a *natural* step does, as
    optimisers that divide by squared gradients approximately take. Both are computed from inner
    products :math:`\langle g_n, g_m\rangle` of all examples of all tasks, with unbiased norms
    and intervals over the examples of both tasks.

    Then single examples: b hurts a by :math:`-\langle g_a, g_b\rangle` (gradients per token).
    The mean harm of each b is tested by permuting harms among examples; pairs are tested against
    pairs within A. Never are coordinates permuted: the gradients of any two examples of a model
    are large in the same coordinates, so that against shuffled coordinates everything is
    significant.

    Args:
        model: The model; it comes back untouched.
        tasks: Task to data, as in :func:`fisherscope.estimate`; at least two.
        fishers: F of the natural metric: task to Fisher (their mean), or one for all. Default:
            ``None``, diagonals estimated with labels drawn from the model.
        parameters: Which, as in :func:`fisherscope.estimate`. Default: ``None``, all.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        damping: :math:`\lambda` as a fraction of the mean of F's diagonal, as
            :func:`fisherscope.precondition` has it. Default: ``1e-3``.
        memory_limit: Most memory for the gradients, in bytes or as text. Where n examples of P
            parameters take more than that in fp32, large tensors are sketched. Default: 2 GiB.
        resamples: Of the bootstrap. Default: 1000.
        permutations: Of each table of harms. Default: 200.
        level: Largest q-value (false-discovery rate) that counts as found. Default: 0.05.
        most_pairs: How many pairs of examples to list per pair of tasks. Default: 100.
        seed: Keys sketches, labels of F, resamples and permutations. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many of each task. Default: ``None``, all.
        progress: Show progress bars. Default: ``False``.

    Returns:
        Cosines, harms and tests.

    Raises:
        TaskError: If there are fewer than two tasks, or ``fishers`` are of other tasks.
        ParameterError: If an option makes no sense, the memory allows no useful sketch, or a
            Fisher doesn't fit. Bad data and gradients that are not finite raise as in
            :func:`fisherscope.estimate`.
    """
    if len(tasks) < 2:
        raise TaskError(
            f"a conflict needs at least two tasks, and tasks has {len(tasks)} "
            f"({', '.join(map(repr, tasks)) or 'none'}); add another one"
        )
    if not 0 < level < 1:
        raise ParameterError(f"level={level!r} must lie between 0 and 1")
    _check_counts(resamples=resamples, permutations=permutations, most_pairs=most_pairs)
    config = FisherConfig(
        parameters=parameters,
        likelihood=likelihood,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    prepared = {task: prepare(model, data, config) for task, data in tasks.items()}
    first = next(iter(prepared.values()))
    sizes = {name: p.numel() for name, p in first.parameters.items()}
    plan = plan_rows(sizes, sum(len(p.examples) for p in prepared.values()), memory_limit)
    metric = inverse_fisher(
        model,
        {task: p.examples for task, p in prepared.items()},
        fishers,
        damping,
        replace(config, max_examples=None),
        {name: tuple(p.shape) for name, p in first.parameters.items()},
    )
    grams = gather(prepared, plan, metric, seed=seed, progress=progress)
    pairs, norms = cosines(grams, resamples=resamples, seed=seed)
    by_example, by_pair, tests = tables(
        grams, permutations=permutations, level=level, most_pairs=most_pairs, seed=seed
    )
    return Conflict(
        cosines=pairs,
        norms=norms,
        examples=by_example,
        pairs=by_pair,
        tests=tests,
        level=level,
        plan=plan,
        metric=metric.source,
        damping=metric.damping,
        n_examples={task: len(ids) for task, ids in grams.ids.items()},
        n_tokens={task: int(grams.tokens[own].sum()) for task, own in grams.slices.items()},
    )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r} must be a whole number of at least 1")
