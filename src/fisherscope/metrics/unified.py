"""One analyzer for one or several models: one store, each Fisher estimated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from fisherscope.arguments import check_mapping, check_number
from fisherscope.data import Example
from fisherscope.data import examples as as_examples
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import DataError, ParameterError, TaskError
from fisherscope.metrics.bombshell import BombshellMetrics
from fisherscope.metrics.estimating import check_store, estimate_tasks
from fisherscope.metrics.model_analysis import ModelAnalysis, analyze_model, used
from fisherscope.metrics.model_comparison import ModelComparison, compare_models
from fisherscope.metrics.modularity import ModularityMetrics
from fisherscope.metrics.run_config import SPARSITY, DamageConfig
from fisherscope.partition import Budget
from fisherscope.planning import Plan
from fisherscope.results import Result
from fisherscope.store import FisherStore

ONE = "model"
TOP = 20
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Analysis(Result):
    """What was found about one or several models.

    Attributes:
        models: Model name to what was found about it.
        comparison: Every other model beside the first; ``None`` for a single model.
    """

    models: dict[str, ModelAnalysis]
    comparison: ModelComparison | None

    def to_frame(self) -> pd.DataFrame:
        """One row per model and task.

        Returns:
            The tasks with loss, trace, concentration and split-half agreement.
        """
        frames = {name: found.to_frame() for name, found in self.models.items()}
        return pd.concat(frames, names=["model"]).reset_index("model").reset_index(drop=True)


class UnifiedModelAnalyzer:
    """The whole analysis of models and tasks over one shared store.

    Owns a :class:`BombshellMetrics` and a :class:`ModularityMetrics` that see the same store
    and settings, so whatever was analysed can be asked further questions without estimating
    again.

    Attributes:
        store: Task to Fisher; with several models the key is ``"MODEL/TASK"``.
        config: How Fishers are estimated.
        bombshell: The general toolkit over this store.
        modularity: Task interaction over this store.
    """

    def __init__(self, store: FisherStore | None = None, config: FisherConfig | None = None):
        """Set up an analyzer.

        Args:
            store: Where Fishers are kept; Fishers of the same models, data and settings
                that it holds are not estimated again. Default: a new one in memory.
            config: How Fishers are estimated. Default: ``DEFAULTS``.
        """
        self.store = FisherStore() if store is None else store
        self.config = DEFAULTS if config is None else config
        self.bombshell = BombshellMetrics(self.store, self.config)
        self.modularity = ModularityMetrics(self.store, self.config)

    @needs_whole
    def analyze(
        self,
        models: nn.Module | Mapping[str, nn.Module],
        tasks: Mapping[str, Any],
        *,
        sparsity: float = SPARSITY,
        damage: DamageConfig | None = None,
        progress: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> Analysis:
        """Estimate each Fisher once and answer every question with it.

        All models see the same examples, in the same batches, under the same seed.

        Args:
            models: A model, or model name to model for several (checkpoints of one run, or
                any models of the same tokens); each comes back untouched. The first is what
                the others are compared with.
            tasks: Task name to data, as in :func:`fisherscope.estimate`.
            sparsity: Share of weights pruned in the masks whose overlap is shown. Default:
                ``0.5``.
            damage: How the damage matrix is made. Default: ``DamageConfig()``.
            progress: Whether progress bars are shown. Default: ``True``.
            say: Called with a line of text at the beginning of each step. Default: nothing.

        Returns:
            Each model's results and the comparison between models.

        Raises:
            ParameterError: If there is no model, or ``sparsity`` is not in [0, 1).
            TaskError: If there is no task.
            DataError: If a task has fewer than two examples: ceilings and bands need two
                halves. A store that holds other Fishers under these keys is a
                ``StoreError``.
        """
        several = not isinstance(models, nn.Module)
        if several:
            check_mapping("models", models, "a model, or {name: model}")
            for name, model in models.items():
                if not isinstance(model, nn.Module):
                    raise ParameterError(
                        f"models[{name!r}] is a {type(model).__name__}, not a torch module."
                    )
        named = dict(models) if several else {ONE: models}
        if not named:
            raise ParameterError("models is empty; give at least one model")
        check_number("sparsity", sparsity, low=0, below=1)
        check_mapping("tasks", tasks, "{name: data}")
        if not tasks:
            raise TaskError("tasks is empty; give at least one task, as {name: data}")
        examples = {
            task: as_examples(data, max_examples=self.config.max_examples)
            for task, data in tasks.items()
        }
        for task, rows in examples.items():
            if len(rows) < 2:
                raise DataError(f"task {task!r} has one example; give at least two, for two halves")
        keys = {
            name: {task: f"{name}/{task}" if several else task for task in tasks} for name in named
        }
        for name, model in named.items():
            keyed = {keys[name][task]: rows for task, rows in examples.items()}
            check_store(model, keyed, self.config, self.store)
        found = {}
        for name, model in named.items():
            if several:
                say(f"Model {name}")
            found[name] = self.analyze_one(
                model,
                examples,
                keys=keys[name],
                source=name,
                sparsity=sparsity,
                damage=damage or DamageConfig(),
                progress=progress,
                say=say,
            )
        compared = compare_models(found, seed=self.config.seed) if len(found) > 1 else None
        return Analysis(models=found, comparison=compared)

    @needs_whole
    def analyze_one(
        self,
        model: nn.Module,
        examples: Mapping[str, list[Example]],
        *,
        keys: Mapping[str, str],
        source: str,
        sparsity: float,
        damage: DamageConfig,
        settings: Mapping[str, Any] | None = None,
        progress: bool,
        say: Callable[[str], None],
        plans: Mapping[str, Plan] | None = None,
        budget: Budget | None = None,
    ) -> ModelAnalysis:
        """One model's part of :meth:`analyze`, for callers that load models one by one.

        Args:
            model: The model.
            examples: Task name to examples; the store has been checked for them.
            keys: Task name to key in the store.
            source: Where the model came from, for the record.
            sparsity: As in :meth:`analyze`.
            damage: As in :meth:`analyze`.
            settings: Further settings for the record. Default: none.
            progress: Whether progress bars are shown.
            say: Called with a line of text at the beginning of each step.
            plans: Task name to plan, to set beside what each Fisher took. Default: ``None``.
            budget: The memory for sums. Default: ``None``, no limit.

        Returns:
            What was found about it.
        """
        keyed = {keys[task]: rows for task, rows in examples.items()}
        planned = plans and {keys[task]: plan for task, plan in plans.items()}
        done = estimate_tasks(
            model,
            keyed,
            self.config,
            self.store,
            progress=progress,
            say=say,
            plans=planned,
            budget=budget,
        )
        answers = {
            "top": self._top(keys),
            "asymmetry": self._asymmetry(model, examples, keys, damage, say),
            "uncertainty": self._uncertainty(model, examples, keys, say),
        }
        return analyze_model(
            model,
            examples,
            {task: done[keys[task]] for task in examples},
            self.config,
            source=source,
            sparsity=sparsity,
            damage=damage,
            settings=settings,
            answers=answers,
            progress=progress,
            say=say,
        )

    def _top(self, keys: Mapping[str, str]) -> Rows:
        found = []
        for task, key in keys.items():
            top = self.bombshell.get_top_fisher_directions(key, k=TOP)
            rows = top.to_frame().to_dict(orient="records")
            found += [{"task": task, **row} for row in rows]
        return found

    def _asymmetry(
        self,
        model: nn.Module,
        examples: Mapping[str, list[Example]],
        keys: Mapping[str, str],
        damage: DamageConfig,
        say: Callable[[str], None],
    ) -> Rows:
        if not damage.enabled or not damage.pair_examples:
            return []
        say("Which of two tasks is hurt more by the other")
        rows = {
            task: used(examples[task], self.store[key])[: damage.pair_examples]
            for task, key in keys.items()
        }
        pairs = self.modularity.compare_damages(model, rows, measure=damage.measure)
        return [
            {"task_a": a, "task_b": b, **row}
            for (a, b), compared in pairs.items()
            for row in compared.to_frame().to_dict(orient="records")
        ]

    def _uncertainty(
        self,
        model: nn.Module,
        examples: Mapping[str, list[Example]],
        keys: Mapping[str, str],
        say: Callable[[str], None],
    ) -> Rows:
        # A language model has a prediction per token over a whole vocabulary: ask for that by
        # itself, with the candidates that matter.
        fishers = {task: self.store[key] for task, key in keys.items()}
        if {fisher.identity.likelihood for fisher in fishers.values()} != {"classification"}:
            return []
        found = []
        for task, fisher in fishers.items():
            say(f"Uncertainty of {task}")
            rows = used(examples[task], fisher)
            sure = self.bombshell.estimate_fisher_uncertainty(model, rows, keys[task])
            quality = sure.quality.to_dict(orient="records")
            found += [{"task": task, "outcome": sure.outcome, **row} for row in quality]
        return found
