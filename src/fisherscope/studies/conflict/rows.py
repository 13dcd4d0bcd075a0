"""Inner products of the per-example gradients of several tasks, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fisherscope.data import batches, content_id
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.errors import ParameterError
from fisherscope.naming import by_layer
from fisherscope.preparation import Prepared, settled
from fisherscope.studies.conflict.metric import NATURAL, PLAIN, Metric
from fisherscope.studies.conflict.sketch import CountSketch, RowPlan

ALL = "all"
# Bytes of dense gradients made at a time, and columns multiplied in fp32 before adding in fp64.
_AT_ONCE, _COLUMNS = 1 << 26, 1 << 15


@dataclass(frozen=True, eq=False)
class Grams:
    r"""Inner products :math:`\langle g_n, g_m \rangle` of all examples of all tasks.

    Gradients are of an example's summed loss, so that per-token means divide by ``tokens``.

    Attributes:
        ids: Task to the ids of its examples.
        slices: Task to its rows.
        tokens: float64 [N], supervised tokens.
        distinct: float64 [N, N], 0 where two rows are the same data (an example and itself
            above all), else 1. Only products of distinct data are unbiased for products of
            expected gradients.
        scopes: Label of each layer to its number (``None`` outside the layers), then ``"all"``.
        products: Metric to float64 [scopes, N, N].
        mean_variance: Metric to float64 [scopes, tasks, tasks]: variance that sketches add to
            inner products of mean gradients (per example), an upper bound.
        pair_variance: Metric to float64 [N, N]: the same for single examples, all layers.
        plan: How gradients were kept.
    """

    ids: dict[str, tuple[str, ...]]
    slices: dict[str, slice]
    tokens: np.ndarray
    distinct: np.ndarray
    scopes: dict[str, int | None]
    products: dict[str, np.ndarray]
    mean_variance: dict[str, np.ndarray]
    pair_variance: dict[str, np.ndarray]
    plan: RowPlan

    def pair(self, metric: str, scope: str, a: str, b: str) -> np.ndarray:
        """Inner products between two tasks' examples.

        Args:
            metric: ``"plain"`` or ``"natural"``.
            scope: A layer's label or ``"all"``.
            a: Task of the rows.
            b: Task of the columns.

        Returns:
            float64 [examples of a, examples of b].
        """
        at = list(self.scopes).index(scope)
        return self.products[metric][at, self.slices[a], self.slices[b]]


def gather(
    prepared: Mapping[str, Prepared],
    plan: RowPlan,
    metric: Metric | None,
    *,
    seed: int,
    progress: bool,
) -> Grams:
    """One pass over every task's examples, then the inner products.

    Args:
        prepared: Task to its checked request, all with the same parameters.
        plan: How gradients are kept.
        metric: The natural metric, or ``None`` for plain products only.
        seed: Of the sketches.
        progress: Show a progress bar.

    Returns:
        Inner products.

    Raises:
        ParameterError: If the metric needs whole gradients, but the plan sketches them.
    """
    if not plan.exact and metric is not None and metric.fisher is not None:
        raise ParameterError(
            f"a {metric.fisher.structure} Fisher multiplies whole gradients, but memory_limit "
            "allows sketches only: raise it, use fewer examples, or pass diagonal Fishers"
        )
    rows = _Rows(prepared, plan, metric, seed)
    for task, request in prepared.items():
        settled(request, lambda p, task=task: rows.fill(task, p, progress))
    return rows.grams()


class _Rows:
    """Rows [N, columns] per tensor; whole ones are shared by the metrics, sketches are not."""

    def __init__(
        self, prepared: Mapping[str, Prepared], plan: RowPlan, metric: Metric | None, seed: int
    ):
        self.prepared, self.plan, self.metric = dict(prepared), plan, metric
        first = next(iter(prepared.values()))
        self.shapes = {name: tuple(p.shape) for name, p in first.parameters.items()}
        device = next(first.model.parameters()).device
        self.slices, start = {}, 0
        for task, request in prepared.items():
            self.slices[task] = slice(start, start + len(request.examples))
            start += len(request.examples)
        names = (PLAIN,) if plan.exact or metric is None else (PLAIN, NATURAL)
        self.metrics = (PLAIN,) if metric is None else (PLAIN, NATURAL)
        self.kept = {
            key: {
                name: torch.zeros((start, width), device=device)
                for name, width in plan.widths.items()
            }
            for key in names
        }
        self.sketches = {
            name: CountSketch(plan.sizes[name], plan.widths[name], seed + 7919 * number, device)
            for number, name in enumerate(plan.sizes)
            if plan.sketched(name)
        }

    def fill(self, task: str, prepared: Prepared, progress: bool) -> None:
        """Fill a task's rows, from scratch."""
        own = self.slices[task]
        for held in self.kept.values():
            for rows in held.values():
                rows[own] = 0
        place = {e.id: own.start + i for i, e in enumerate(prepared.examples)}
        groups = batches(prepared.examples, prepared.config.batch_size)
        bar = tqdm(groups, desc=f"gradients of {task}", unit="batch", disable=not progress)
        with bar, Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
            for group in bar:
                at = [place[e.id] for e in group]

                def sink(name: str, score: Score, rows: slice, draw: int, at=at) -> None:
                    del draw
                    self._add(name, score, at[rows])

                loss = sweep.run(group, Labelling(), sink)
                finite = np.ones(len(group), dtype=bool)
                for rows in self.kept[PLAIN].values():
                    finite &= torch.isfinite(rows[at]).all(1).cpu().numpy()
                sweep.check(finite, group, loss, f"task {task!r}: the gradient")

    def _add(self, name: str, score: Score, at: list[int]) -> None:
        step = max(1, _AT_ONCE // (4 * self.plan.sizes[name]))
        for start in range(0, len(at), step):
            some = at[start : start + step]
            gradients = score.dense(slice(start, start + len(some)), self.shapes[name]).flatten(1)
            for key, held in self.kept.items():
                if key == NATURAL and self.metric is not None:
                    gradients = gradients * self.metric.scales[name].to(gradients).reshape(-1)
                into = held[name][some]
                if name in self.sketches:
                    self.sketches[name].add(gradients, into)
                else:
                    into += gradients
                held[name][some] = into

    def grams(self) -> Grams:
        """Multiply rows with rows."""
        examples = [e for p in self.prepared.values() for e in p.examples]
        tokens = [p.likelihood.tokens(e) for p in self.prepared.values() for e in p.examples]
        content = np.array([content_id(e) for e in examples])
        distinct = (content[:, None] != content[None, :]).astype(np.float64)
        labels = by_layer(self.shapes)
        scopes: dict[str, int | None] = {label: layer for layer, label in labels.values()}
        scopes = {**scopes, ALL: None}
        products, means, pairs = {}, {}, {}
        for key in self.metrics:
            if key == NATURAL and NATURAL not in self.kept and self.metric is not None:
                self.metric.whiten(self.kept[PLAIN], self.shapes)
            held = self.kept.get(key, self.kept[PLAIN])
            products[key], means[key], pairs[key] = self._products(held, distinct, labels, scopes)
        return Grams(
            ids={task: tuple(e.id for e in p.examples) for task, p in self.prepared.items()},
            slices=self.slices,
            tokens=np.array(tokens, dtype=np.float64),
            distinct=distinct,
            scopes=scopes,
            products=products,
            mean_variance=means,
            pair_variance=pairs,
            plan=self.plan,
        )

    def _products(
        self,
        held: Mapping[str, Tensor],
        distinct: np.ndarray,
        labels: Mapping[str, tuple[int | None, str]],
        scopes: Mapping[str, int | None],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = {label: i for i, label in enumerate(scopes)}
        n, t = len(distinct), len(self.slices)
        products = np.zeros((len(scopes), n, n))
        means, pairs = np.zeros((len(scopes), t, t)), np.zeros((n, n))
        for name, rows in held.items():
            gram = _gram(rows)
            at = order[labels[name][1]]
            products[at] += gram
            if name in self.sketches:
                width, squares = self.plan.widths[name], gram.diagonal()
                pairs += (np.outer(squares, squares) + gram**2) / width
                mean = self._means(gram, distinct)
                norms = np.maximum(mean.diagonal(), 0)
                means[at] += (np.outer(norms, norms) + mean**2) / width
        products[-1], means[-1] = products[:-1].sum(0), means[:-1].sum(0)
        return products, means, pairs

    def _means(self, gram: np.ndarray, distinct: np.ndarray) -> np.ndarray:
        found = np.zeros((len(self.slices),) * 2)
        for i, a in enumerate(self.slices.values()):
            for j, b in enumerate(self.slices.values()):
                count = distinct[a, b].sum()
                found[i, j] = (gram * distinct)[a, b].sum() / count if count else math.nan
        return np.nan_to_num(found)


def _gram(rows: Tensor) -> np.ndarray:
    total = torch.zeros((len(rows),) * 2, dtype=torch.float64, device=rows.device)
    for part in rows.split(_COLUMNS, 1):
        total += part @ part.T
    return total.cpu().numpy()
