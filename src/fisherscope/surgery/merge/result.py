"""What a merge made, and who paid for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import nn

from fisherscope.results import Result, plain

Outcome = Literal["solved", "not_converged"]


@dataclass(frozen=True, eq=False)
class Merged(Result):
    r"""A merged model, and what its distance from each of the models costs.

    Attributes:
        model: The merged model, a new one.
        table: One row per parameter tensor and model: ``tensor``, ``model`` (its number in the
            list), ``n_parameters``, ``rule`` (how the tensor was merged), ``distance``
            (:math:`\|\theta - \theta_i\|`), ``cost`` (its share of :math:`\frac12 (\theta -
            \theta_i)^T F_i (\theta - \theta_i)`, cross terms with the other tensors of its
            block included, in nats per unit; NaN where no Fisher covers it), ``fallback`` (number
            of directions of its block in which no Fisher has a say), ``iterations`` and
            ``residual`` (of conjugate gradients, relative to the right-hand side).
        method: How the models were merged.
        outcome: ``"solved"``, or ``"not_converged"`` if conjugate gradients ran out of iterations
            for some block.
    """

    model: nn.Module
    table: pd.DataFrame
    method: str
    outcome: Outcome

    @property
    def costs(self) -> tuple[float, ...]:
        """The predicted cost of each model, nats per unit: the sum over covered tensors.

        NaN where there are no Fishers.
        """
        wide = self.table.pivot(index="tensor", columns="model", values="cost")
        return tuple(wide.sum(min_count=1))

    def to_frame(self) -> pd.DataFrame:
        """The table.

        Returns:
            A copy of ``table``.
        """
        return self.table.copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model.

        Returns:
            One entry per other field.
        """
        return {"method": self.method, "outcome": self.outcome, "table": plain(self.table)}
