"""How two tasks interact: what a step on one does to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fisherscope.analysis.asymmetry import Asymmetry, asymmetries, asymmetry
from fisherscope.analysis.damage_index import DamageKind
from fisherscope.analysis.step_damage import StepDamage, step_config, step_damage
from fisherscope.engine.whole import needs_whole
from fisherscope.metrics.base import FisherBase

# The settings of a Fisher that the damage functions take, too.
_SETTINGS = (
    *("parameters", "fisher_type", "unit", "likelihood", "draws"),
    *("seed", "batch_size", "max_examples"),
)


class ModularityMetrics(FisherBase):
    """Task interaction, under one configuration; see :class:`FisherBase` for what is shared."""

    @needs_whole
    def compute_fisher_weighted_damage(
        self,
        model: nn.Module,
        task_A_batch: Any,
        task_B_batch: Any,
        damage_type: DamageKind = "quadratic",
        learning_rate: float | None = None,
        layers_prefix: str | None = None,
        *,
        measure: bool = False,
        task_A: str | None = None,
    ) -> StepDamage:
        """How a gradient step on task B hurts task A: :func:`fisherscope.step_damage`.

        Args:
            model: The model; it comes back untouched.
            task_A_batch: Data of the task that is hurt.
            task_B_batch: Data of the task that takes the step.
            damage_type: Kind of the index, see :func:`fisherscope.damage_index`. Default:
                ``"quadratic"``.
            learning_rate: Of the step. Default: ``None``, half of B's Cauchy step.
            layers_prefix: Only parameters with these whole components in their names move and
                count. Default: ``None``, all that are configured.
            measure: Also take the step and take it back. Default: ``False``.
            task_A: Take the stored Fisher of this task for the index. Default: ``None``, it is
                estimated on ``task_A_batch``.

        Returns:
            Index, prediction in nats per token, and measurement.
        """
        return step_damage(
            model,
            task_A_batch,
            task_B_batch,
            kind=damage_type,
            fisher=None if task_A is None else self.store[task_A],
            learning_rate=learning_rate,
            measure=measure,
            **self._settings(model, layers_prefix),
        )

    @needs_whole
    def compute_fisher_damage_with_asymmetry(
        self,
        model: nn.Module,
        batch_A: Any,
        batch_B: Any,
        damage_type: DamageKind = "quadratic",
        learning_rate: float | None = None,
        layers_prefix: str | None = None,
        *,
        measure: bool = False,
        names: tuple[str, str] = ("a", "b"),
    ) -> Asymmetry:
        """What two tasks do to each other, and which is hurt more: :func:`fisherscope.asymmetry`.

        Args:
            model: The model; it comes back untouched.
            batch_A: Data of the first task.
            batch_B: Data of the second.
            damage_type: Kind of the index. Default: ``"quadratic"``.
            learning_rate: Of both steps. Default: ``None``, half of each task's own Cauchy step.
            layers_prefix: Only parameters with these whole components in their names move and
                count. Default: ``None``, all that are configured.
            measure: Also take both steps and measure. Default: ``False``.
            names: What to call the tasks. Default: ``("a", "b")``.

        Returns:
            Both directions with intervals, their ratio, and whether a difference is resolved.
        """
        return asymmetry(
            model,
            batch_A,
            batch_B,
            names=names,
            kind=damage_type,
            learning_rate=learning_rate,
            measure=measure,
            **self._settings(model, layers_prefix),
        )

    @needs_whole
    def compare_damages(
        self, model: nn.Module, tasks: Mapping[str, Any], *, measure: bool = False
    ) -> dict[tuple[str, str], Asymmetry]:
        """:meth:`compute_fisher_damage_with_asymmetry` of every two tasks, in shared passes.

        Args:
            model: The model; it comes back untouched.
            tasks: Task name to data.
            measure: Also take every step and measure. Default: ``False``.

        Returns:
            Pair of names to both directions.
        """
        config = step_config("quadratic", None, **self._settings(model, None))
        return asymmetries(model, tasks, config, measure=measure)

    def _settings(self, model: nn.Module, layers_prefix: str | None) -> dict[str, Any]:
        settings = {name: getattr(self.config, name) for name in _SETTINGS}
        return settings | self._under(model, self.config, layers_prefix)


ExtendedModularityMetrics = ModularityMetrics
