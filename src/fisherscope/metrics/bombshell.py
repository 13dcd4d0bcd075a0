"""The general toolkit: what a task needs, what it shares, and what can be changed for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from fisherscope.analysis.directions import TopDirections, top_directions
from fisherscope.analysis.importance import Importance, Method, Per, importance
from fisherscope.analysis.masks import masks
from fisherscope.analysis.overlap import Overlap, overlap
from fisherscope.analysis.similarity import Similarity, similarity
from fisherscope.analysis.top import Scope, TopCoordinates, top_coordinates
from fisherscope.analysis.uncertainty import Uncertainty, uncertainty
from fisherscope.arguments import check_list, check_number
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.metrics.base import FisherBase, Source
from fisherscope.structures import Fisher
from fisherscope.surgery import Merged, merge, precondition


class BombshellMetrics(FisherBase):
    """Forgetting, brittleness, continual learning: questions to the Fishers of named tasks.

    Every method is one function of the library with the task's Fisher from the store. Where it
    takes ``source``, ``"mean"`` is the plain mean over all that was seen, or what was put into
    the store, and ``"ema"`` the moving average, whose standard errors are NaN.
    """

    @needs_whole
    def compute_fisher_importance(
        self,
        model: nn.Module | None = None,
        task: str = "default",
        normalize: bool = True,
        per: Per = "parameter",
        *,
        method: Method = "fisher",
        source: Source = "mean",
    ) -> Importance:
        """How much each part of the model matters: :func:`fisherscope.importance`.

        Args:
            model: The model; for ``method="obd"`` and ``per="head"``. Default: ``None``.
            task: Name of the task. Default: ``"default"``.
            normalize: Divide by the total. Default: ``True``.
            per: What to add up over. Default: ``"parameter"``, nothing.
            method: ``"fisher"`` or ``"obd"``. Default: ``"fisher"``.
            source: ``"mean"`` or ``"ema"``. Default: ``"mean"``.

        Returns:
            Importances with their standard errors.
        """
        fisher = self._fisher(task, source)
        return importance(fisher, model, method=method, per=per, normalize=normalize)

    @needs_whole
    def get_top_fisher_directions(
        self,
        task: str = "default",
        k: int | None = None,
        percentile: float | None = None,
        *,
        source: Source | Literal["direct"] = "mean",
        scope: Scope = "global",
        model: nn.Module | None = None,
        batch: Any = None,
    ) -> TopCoordinates | TopDirections:
        """What a step changes most: coordinates of a diagonal, eigenvectors of other structures.

        Args:
            task: Name of the task. Default: ``"default"``.
            k: How many, in all or (coordinates, ``scope="tensor"``) of each tensor. Default:
                ``None``, 10 unless there is a percentile.
            percentile: Coordinates above this percentile instead, between 0 and 100. Default:
                ``None``.
            source: ``"mean"``, ``"ema"``, or ``"direct"`` for an estimate on ``batch`` that is
                used and not kept. Default: ``"mean"``.
            scope: Of coordinates: ``"global"`` or ``"tensor"``. Default: ``"global"``.
            model: For ``"direct"``. Default: ``None``.
            batch: For ``"direct"``. Default: ``None``.

        Returns:
            :func:`fisherscope.top_coordinates` of a diagonal or grouped Fisher,
            :func:`fisherscope.top_directions` of any other.

        Raises:
            ParameterError: If both ``k`` and ``percentile`` are given, ``percentile`` or
                ``scope`` for eigenvectors, or no model and batch for ``"direct"``.
        """
        if source == "direct":
            if model is None or batch is None:
                raise ParameterError("source='direct' estimates anew: pass model= and batch=.")
            fisher = self._estimate(model, batch, self.config)
        else:
            fisher = self._fisher(task, source)
        if fisher.layout:
            if percentile is not None or scope != "global":
                raise ParameterError(
                    f"percentile= and scope= choose coordinates, but task {task!r} has a "
                    f"{fisher.identity.structure!r} Fisher with eigenvectors: pass k= alone."
                )
            return top_directions(fisher, k=10 if k is None else k)
        k = 10 if k is None and percentile is None else k
        return self._get_top_coordinates_from_fisher(fisher, k, percentile, scope)

    def _get_top_coordinates_from_fisher(
        self,
        fisher: Fisher,
        k: int | None = None,
        percentile: float | None = None,
        scope: Scope = "global",
    ) -> TopCoordinates:
        """The k largest coordinates, or those above a percentile; exactly one of the two."""
        if (k is None) == (percentile is None):
            raise ParameterError("give exactly one of k and percentile.")
        if percentile is not None:
            check_number("percentile", percentile, low=0, below=100)
        fraction = None if percentile is None else 1 - percentile / 100
        return top_coordinates(fisher, k=k, fraction=fraction, scope=scope)

    def compare_task_fisher(
        self,
        task_a: str,
        task_b: str,
        metrics: Sequence[str] | None = None,
        *,
        source: Source = "mean",
        **options: Any,
    ) -> Similarity:
        """How alike two tasks' Fishers are: :func:`fisherscope.similarity`.

        Args:
            task_a: Name of a task.
            task_b: Name of another.
            metrics: Keep these rows. Default: ``None``, all five.
            source: ``"mean"`` or ``"ema"``. Default: ``"mean"``.
            **options: Further ones of the function. Tasks that were followed along unlike runs
                need ``across_models=True``.

        Returns:
            Metrics with ceiling and floor.
        """
        if metrics is not None:
            check_list("metrics", metrics, "a list of metrics")
        found = similarity(self._fisher(task_a, source), self._fisher(task_b, source), **options)
        if metrics is None:
            return found
        for metric in metrics:
            found.value(metric)  # type: ignore[arg-type]  # raises for an unknown one
        kept = found.frame[found.frame["metric"].isin(list(metrics))]
        return dataclasses.replace(found, frame=kept.reset_index(drop=True))

    def compute_fisher_overlap(
        self, masks_a: Mapping[str, Tensor], masks_b: Mapping[str, Tensor]
    ) -> Overlap:
        """How far two masks keep the same parameters: :func:`fisherscope.overlap`.

        Args:
            masks_a: Parameter name to boolean tensor, true = keep.
            masks_b: The same of the same tensors.

        Returns:
            Overlap in all and per tensor, with what chance would give.
        """
        return overlap(masks_a, masks_b)

    @needs_whole
    def get_fisher_pruning_masks(
        self,
        task: str = "default",
        sparsity: float = 0.5,
        method: Literal["obd", "fisher", "magnitude", "random"] = "obd",
        scope: Literal["global", "tensor"] = "global",
        structured: Literal["head", "neuron"] | None = None,
        pattern: Literal["2:4"] | None = None,
        *,
        model: nn.Module | None = None,
        source: Source = "mean",
        **options: Any,
    ) -> dict[str, Tensor]:
        """Which parameters to keep: :func:`fisherscope.masks`.

        Args:
            task: Name of the task. Default: ``"default"``.
            sparsity: Fraction to remove. Default: 0.5.
            method: What is removed first is least by this. Default: ``"obd"``, the expected
                cost of its removal.
            scope: ``"global"`` or ``"tensor"``. Default: ``"global"``.
            structured: Whole attention heads or hidden units. Default: ``None``, single weights.
            pattern: Two of four consecutive inputs. Default: ``None``.
            model: The estimated model; all but single weights by ``"fisher"`` or ``"random"``
                need it. Default: ``None``.
            source: ``"mean"`` or ``"ema"``. Default: ``"mean"``.
            **options: ``protect`` and ``seed`` of the function.

        Returns:
            Parameter name to boolean tensor of the parameter's shape, true = keep.

        Raises:
            ParameterError: If both ``structured`` and ``pattern`` are given.
        """
        if structured is not None and pattern is not None:
            raise ParameterError(
                f"structured={structured!r} and pattern={pattern!r} exclude each other: pass one."
            )
        return masks(
            self._fisher(task, source),
            sparsity,
            model=model,
            method=method,
            scope=scope,
            structure=structured or pattern or "weight",
            **options,
        )

    def scale_by_fisher(
        self,
        gradients: Mapping[str, Tensor],
        task: str = "default",
        damping: float = 1e-3,
        power: float = 1.0,
        *,
        relative: bool = True,
        source: Source = "mean",
    ) -> dict[str, Tensor]:
        """Gradients divided by a power of the Fisher: :func:`fisherscope.precondition`.

        Args:
            gradients: Parameter name to gradient, one for each parameter of the Fisher.
            task: Name of the task. Default: ``"default"``.
            damping: Added to F. Default: ``1e-3``.
            power: 1 is the natural gradient. Default: 1.0.
            relative: Whether damping is a fraction of the diagonal's mean. Default: ``True``.
            source: ``"mean"`` or ``"ema"``. Default: ``"mean"``.

        Returns:
            Parameter name to new gradient.
        """
        fisher = self._fisher(task, source)
        return precondition(gradients, fisher, damping=damping, relative=relative, power=power)

    @needs_whole
    def fisher_weighted_merge(
        self,
        models: Sequence[nn.Module],
        tasks: Sequence[str],
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> Merged:
        """Models merged by their Fishers: :func:`fisherscope.merge`.

        Args:
            models: The models; they stay as they are.
            tasks: The task of each, whose Fisher was estimated on that model.
            weights: One number per model. Default: ``None``, 1 each.
            **options: Further ones of the function.

        Returns:
            The merged model and the predicted cost to each.

        Raises:
            ParameterError: If ``models`` or ``tasks`` is no list, or there are more or fewer tasks
                than models.
        """
        check_list("tasks", tasks, "a list of task names, one per model")
        check_list("models", models, "a list of models")
        if len(models) != len(tasks):
            raise ParameterError(f"there are {len(models)} models, but {len(tasks)} tasks.")
        return merge(models, [self.store[task] for task in tasks], weights=weights, **options)

    @needs_whole
    def estimate_fisher_uncertainty(
        self,
        model: nn.Module,
        batch: Any,
        task: str = "default",
        kind: Literal["laplace", "cramer_rao", "monte_carlo"] = "laplace",
        **options: Any,
    ) -> Uncertainty:
        """Predictions with what the task's Fisher says about them: :func:`fisherscope.uncertainty`.

        Args:
            model: The model that the task's Fisher was estimated on.
            batch: What is to be predicted, with labels or without.
            task: Name of the task. Default: ``"default"``.
            kind: Default: ``"laplace"``.
            **options: Further ones of the function. ``observations`` is by default the number
                of units that the Fisher stands for, an example that was seen several times
                counted once.

        Returns:
            Predictions, and their quality where there are labels.
        """
        fisher = self.store[task]
        groups = fisher.ledger.groups
        if groups is not None and fisher.identity.unit != "batch":
            once = round(fisher.n_units * len(np.unique(groups)) / len(groups))
            options.setdefault("observations", once)
        return uncertainty(model, fisher, batch, kind=kind, **options)
