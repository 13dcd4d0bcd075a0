"""A task as it takes part in a comparison: its request, its gradient and step, its Fisher."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fisherscope.analysis.access import own_weights
from fisherscope.analysis.damage_index import check_gradient
from fisherscope.analysis.descent import Descent, descent
from fisherscope.defaults import FisherConfig
from fisherscope.errors import ParameterError
from fisherscope.estimation import estimate_prepared
from fisherscope.preparation import Prepared, prepare
from fisherscope.structures import Fisher


@dataclass(frozen=True, eq=False)
class Party:
    """What a task brings with it, computed once whoever it is compared with.

    Attributes:
        prepared: The checked request, with the data's labels and the settings of the Fisher.
        step: Its mean gradient, and how far it would go against it; ``None`` where only others
            take steps.
        fisher: The Fisher of the index; ``None`` where it only takes steps.
        given: Whether that was given, so that its examples are not at hand.
    """

    prepared: Prepared
    step: Descent | None
    fisher: Fisher | None
    given: bool = False

    @property
    def exact(self) -> Prepared:
        """The request whose second order is that of the true Fisher, per example."""
        config = replace(self.prepared.config, fisher_type="mc", unit="example")
        return self.prepared.under(config)


def party(
    model: nn.Module,
    data: Any,
    config: FisherConfig,
    *,
    roles: Collection[str],
    learning_rate: float | None = None,
    fisher: Fisher | None = None,
) -> Party:
    """Compute what a task brings with it.

    Args:
        model: The model.
        data: The task.
        config: The settings of the Fisher of the index.
        roles: ``"hurt"``, ``"stepping"`` or both.
        learning_rate: Of the step. Default: ``None``, half of the Cauchy step.
        fisher: The Fisher of the index. Default: ``None``, estimated.

    Returns:
        Request, step and Fisher.

    Raises:
        ParameterError: If ``fisher`` is no Fisher. One of other parameters raises the same, one
            of other weights ``IdentityError``.
    """
    prepared = prepare(model, data, replace(config, fisher_type="empirical")).under(config)
    if fisher is not None:
        if not isinstance(fisher, Fisher):
            raise ParameterError(
                f"fisher is a {type(fisher).__name__}; pass what fs.estimate returned."
            )
        own_weights(fisher, model, "the index")
        check_gradient(fisher, dict(prepared.parameters))
    step = descent(prepared, rate=learning_rate) if "stepping" in roles else None
    given = fisher is not None
    if "hurt" in roles and fisher is None:
        fisher = estimate_prepared(prepared)
    return Party(prepared, step, fisher, given)
