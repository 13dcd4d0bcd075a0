"""How heavily a gradient leans on what a task needs, as one number without units of F."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from fisherscope.analysis.access import require_diagonal
from fisherscope.arguments import check_choice, check_tensors
from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.naming import by_layer
from fisherscope.results import Result
from fisherscope.structures import Fisher
from fisherscope.structures.vectors import check_vector

DamageKind = Literal["quadratic", "sqrt", "l1"]
Outcome = Literal["ok", "zero_fisher"]

EXPONENTS: dict[DamageKind, int] = {"quadratic": 2, "sqrt": 1, "l1": 1}
"""By which power of the gradient's length an index grows."""

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class DamageIndex(Result):
    """A weighted mean of a gradient's entries, by tensor, layer and in all.

    Attributes:
        kind: ``"quadratic"``, ``"sqrt"`` or ``"l1"``.
        exponent: What ten times the gradient multiplies the index by, as a power of ten: 2
            for ``"quadratic"``, 1 for the others.
        index: Of all parameters together; NaN for a Fisher that is zero everywhere.
        total: Its numerator, not normalised.
        weight: Its denominator.
        outcome: ``"ok"`` or ``"zero_fisher"``.
        frame: One row per aggregate, see :meth:`to_frame`.
    """

    kind: DamageKind
    exponent: int
    index: float
    total: float
    weight: float
    outcome: Outcome
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row for all, one per layer, one per tensor.

        Returns:
            ``level`` (``"all"``, ``"layer"``, ``"tensor"``) and ``name``; ``n_parameters``;
            ``index``, the weighted mean over the row's own parameters; ``total`` and
            ``weight``, its numerator and denominator; ``share`` of the total of all, which
            adds up to one within a level.
        """
        return self.frame.copy()


def damage_index(
    fisher: Fisher, gradient: Mapping[str, Tensor], *, kind: DamageKind = "quadratic"
) -> DamageIndex:
    r"""How much a gradient moves the parameters that a task depends on.

    With the Fisher diagonal F of one task and the gradient g of another's mean loss:

    - ``"quadratic"``: :math:`\sum_i F_i\, g_i^2 / \sum_i F_i`; ten times the gradient, a
      hundred times the index;
    - ``"sqrt"``: :math:`\sum_i \sqrt{F_i}\,|g_i| / \sum_i \sqrt{F_i}`; ten times;
    - ``"l1"``: :math:`\sum_i F_i\,|g_i| / \sum_i F_i`; ten times.

    Each is a mean of :math:`g_i^2` or :math:`|g_i|` with the weights of its denominator, so the
    scale of F (sums or means, of how many examples) drops out. The index has the units of g or
    their square, no step size, no sign and no cross terms; what a step costs in nats is
    :func:`fisherscope.damage`.

    Args:
        fisher: A Fisher of the task that is hurt; of a structure with blocks the diagonal is
            taken.
        gradient: Parameter name to gradient, for the Fisher's parameters; see
            :func:`fisherscope.mean_gradient`. Values that are NaN or infinite raise
            ``NonFiniteError``.
        kind: ``"quadratic"``, ``"sqrt"`` or ``"l1"``. Default: ``"quadratic"``.

    Returns:
        The index in all, per layer and per tensor.

    Raises:
        ParameterError: If ``kind`` is unknown, if gradient and Fisher have different parameters
            or shapes, or if the Fisher is grouped.
    """  # noqa: DOC502 (raised by callees)
    check_choice("kind", kind, get_args(DamageKind))
    require_diagonal(fisher, "damage_index()")
    check_gradient(fisher, gradient)
    shapes = fisher.identity.parameters
    totals, weights = {}, {}
    for name, f in fisher.diagonal().items():
        g, f = gradient[name].detach().cpu().double(), f.double()
        weight = f.sqrt() if kind == "sqrt" else f
        totals[name] = float((weight * (g.square() if kind == "quadratic" else g.abs())).sum())
        weights[name] = float(weight.sum())
    rows = [_row("all", "", shapes, shapes, totals, weights)]
    layers: dict[tuple[int | None, str], list[str]] = {}
    for name, place in by_layer(shapes).items():
        layers.setdefault(place, []).append(name)
    rows += [_row("layer", key[1], names, shapes, totals, weights) for key, names in layers.items()]
    rows += [_row("tensor", name, [name], shapes, totals, weights) for name in shapes]
    frame = pd.DataFrame(rows)
    whole = rows[0]
    frame["share"] = frame["total"] / whole["total"] if whole["total"] > 0 else math.nan
    return DamageIndex(
        kind=kind,
        exponent=EXPONENTS[kind],
        index=whole["index"],
        total=whole["total"],
        weight=whole["weight"],
        outcome="ok" if whole["weight"] > 0 else "zero_fisher",
        frame=frame,
    )


def check_gradient(fisher: Fisher, gradient: Mapping[str, Tensor]) -> None:
    """Make sure that a gradient is one of the Fisher's parameters.

    Args:
        fisher: The Fisher.
        gradient: The gradient.

    Raises:
        ParameterError: If a name is missing or unknown, or a shape is wrong.
        NonFiniteError: If a gradient is NaN or infinite.
    """
    check_tensors("gradient", gradient, "{parameter name: gradient}")
    if not gradient:
        raise ParameterError("gradient is empty: pass fs.mean_gradient(model, data).")
    shapes = fisher.identity.parameters
    check_vector(gradient, shapes)
    if missing := [name for name in shapes if name not in gradient]:
        raise ParameterError(
            f"gradient lacks {len(missing)} of the Fisher's {len(shapes)} parameters: "
            f"{', '.join(map(repr, missing[:_SHOWN]))}. Make both with the same parameters=."
        )
    for name, g in gradient.items():
        if not bool(torch.isfinite(g).all()):
            raise NonFiniteError(f"gradient of {name!r} has values that are NaN or infinite.")


def _row(
    level: str,
    label: str,
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    totals: Mapping[str, float],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    names = list(names)
    total, weight = (math.fsum(of[name] for name in names) for of in (totals, weights))
    return {
        "level": level,
        "name": label,
        "n_parameters": sum(math.prod(shapes[name]) for name in names),
        "index": total / weight if weight > 0 else math.nan,
        "total": total,
        "weight": weight,
    }
