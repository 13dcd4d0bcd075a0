"""Importance of parameters, tensors, layers, modules and attention heads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.analysis.access import own_weights, require_diagonal, squares, weights
from fisherscope.analysis.heads import Head, heads
from fisherscope.arguments import check_choice
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.naming import addresses, by_layer
from fisherscope.results import Result
from fisherscope.structures import Fisher

Method = Literal["fisher", "obd"]
Per = Literal["parameter", "tensor", "layer", "module", "head"]
Outcome = Literal["ok", "too_few_examples", "no_standard_error"]

RELIABLE = 0.25
"""Largest relative standard error of a number that is called reliable."""

ENOUGH_EXAMPLES = 8
"""With fewer examples the standard error itself is off by a quarter and more."""


@dataclass(frozen=True, eq=False)
class Importance(Result):
    """Importance per aggregate, with its uncertainty.

    Attributes:
        method: ``"fisher"`` or ``"obd"``.
        per: What was aggregated over.
        normalize: Whether ``importance`` adds up to one over all parameters of the Fisher.
        unit: What the absolute numbers are a mean over (``"example"``, ``"token"``, ...).
        n_examples: Number of examples behind the estimate.
        total: Sum of the importances of all parameters, not normalised, mean per unit.
        se_source: ``"ledger"`` (variance over examples), ``"halves"`` (see
            :func:`importance`) or ``"none"``.
        outcome: ``"ok"``; ``"too_few_examples"`` (fewer than 8: the standard errors are
            rough themselves); ``"no_standard_error"`` (there are none: estimate with
            ``halves=True``).
        frame: One row per aggregate, see :meth:`to_frame`.
        values: With ``per="parameter"``, name to tensor of the parameter's shape;
            otherwise ``None``.
    """

    method: Method
    per: Per
    normalize: bool
    unit: str
    n_examples: int
    total: float
    se_source: Literal["ledger", "halves", "none"]
    outcome: Outcome
    frame: pd.DataFrame
    values: dict[str, Tensor] | None = field(default=None, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per aggregate; with ``per="parameter"`` one row per tensor.

        Returns:
            What identifies the row (``tensor``, ``layer``, ``module``, ...), then
            ``n_parameters``; ``importance``, the sum over the row's parameters (divided by
            the total if normalised); ``mean``, the mean per parameter and per unit, never
            normalised, with ``mean_se`` and ``relative_se``; ``share`` of the total with
            ``share_se``; ``reliable``, whether the relative standard error is at most 25%.
        """
        return self.frame.copy()


@needs_whole
def importance(
    fisher: Fisher,
    model: nn.Module | None = None,
    *,
    method: Method = "fisher",
    per: Per = "parameter",
    normalize: bool = True,
) -> Importance:
    r"""How much each part of a model matters for a task.

    ``"fisher"`` is the diagonal of the Fisher matrix itself: twice the expected
    :math:`\mathrm{KL}` in nats, per unit, for a displacement by one. ``"obd"`` is
    :math:`\tfrac12 F \theta^2` (optimal brain damage): the expected cost in nats, per unit,
    of setting the parameter to zero, by a diagonal second-order expansion. Large tensors
    have large sums, so compare tensors of different size by ``mean``.

    Standard errors of sums of the diagonal come from the ledger: the variance over examples,
    by the delta method for ratios (means per token, shares). The ledger knows tensors only.
    For heads, and for ``"obd"``, they come from the two halves, if there are any: the
    relative standard error is the larger of the relative half-difference (for heads its
    root mean square over the heads of the same projection) and the relative standard error
    of the tensors' trace. Otherwise they are NaN and nothing is called reliable.

    Args:
        fisher: Any Fisher; a grouped one only for ``"fisher"`` per tensor, layer or module. Of
            the block structures the diagonal is read.
        model: The model that was estimated; needed for ``"obd"`` and for heads.
        method: ``"fisher"`` or ``"obd"``. Default: ``"fisher"``.
        per: ``"parameter"``; ``"tensor"``; ``"layer"`` (what lies outside the layers has
            rows of its own: ``embed``, ``norm``, ``head``, ...); ``"module"`` (layer by
            module: weight and bias, and all norms of a layer, together); ``"head"`` (only
            attention heads, one row per head and role, see
            :class:`fisherscope.analysis.heads.Head`). Default: ``"parameter"``.
        normalize: Divide ``importance`` and ``values`` by the total over all parameters of
            the Fisher. Default: ``True``.

    Returns:
        The importances in the model's order.

    Raises:
        ParameterError: If an option is unknown, if ``model`` is missing or has other parameters,
            if a grouped Fisher is asked for single parameters, or if heads can't be told apart.
            For ``"obd"`` other weights are an ``IdentityError``, unless the Fisher was followed
            along a run.

    Source:
        LeCun, Denker, Solla: Optimal Brain Damage (1989), equation 5, with the Fisher matrix
        for the Hessian.
    """  # noqa: DOC502 (raised by callees)
    check_choice("method", method, get_args(Method))
    check_choice("per", per, get_args(Per))
    if method == "obd" or per in {"parameter", "head"}:
        require_diagonal(fisher, f"importance(method={method!r}, per={per!r})")
    theta = own_weights(fisher, model, 'importance(method="obd")') if method == "obd" else None

    keys, members, slices = _aggregates(fisher, model, per)
    sums, total = _sums(fisher, theta, slices, members)
    n_parameters = np.array(
        [_count(fisher, names) for names in members]
        if slices is None
        else [_head_count(fisher, head) for head in slices]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share = sums / np.float64(total)
        if method == "fisher" and slices is None:
            source = "ledger" if fisher.n_examples > 1 else "none"
            relative, share_se = _ledger_errors(fisher, members)
        elif fisher.halves is not None:
            source = "halves"
            relative, share_se = _half_errors(fisher, theta, slices, members, share)
        else:
            source = "none"
            relative = share_se = np.full(len(sums), np.nan)
        mean = sums / n_parameters
    frame = pd.DataFrame({
        **keys,
        "n_parameters": n_parameters,
        "importance": share if normalize else sums,
        "mean": mean,
        "mean_se": mean * relative,
        "relative_se": relative,
        "share": share,
        "share_se": share_se,
        "reliable": np.nan_to_num(relative, nan=np.inf) <= RELIABLE,
    })
    few = fisher.n_examples < ENOUGH_EXAMPLES
    return Importance(
        method=method,
        per=per,
        normalize=normalize,
        unit=fisher.identity.unit,
        n_examples=fisher.n_examples,
        total=total,
        se_source=source,
        outcome="no_standard_error" if source == "none" else "too_few_examples" if few else "ok",
        frame=frame,
        values=_values(fisher, theta, total if normalize else 1.0) if per == "parameter" else None,
    )


def _aggregates(
    fisher: Fisher, model: nn.Module | None, per: Per
) -> tuple[dict[str, Any], list[list[str]], list[Head] | None]:
    # Columns that identify the rows, the tensors of each, and for heads their slices.
    names = list(fisher.identity.parameters)
    if per == "head":
        if model is None:
            raise ParameterError('importance(per="head") needs the heads: pass model=.')
        weights(fisher, model, "")
        found = heads(model, names)
        columns = {
            "attention": [h.attention for h in found],
            "layer": _column(h.layer for h in found),
            "role": [h.role for h in found],
            "head": [h.head for h in found],
            "queries": [h.queries for h in found],
        }
        return columns, [list(dict.fromkeys(p.tensor for p in h.parts)) for h in found], found
    places = addresses(names)
    if per in {"parameter", "tensor"}:
        columns = {
            "tensor": names,
            "layer": _column(places[name][0] for name in names),
            "module": [places[name][1] for name in names],
        }
        return columns, [[name] for name in names], None
    groups: dict[tuple[int | None, str], list[str]] = {}
    for name, place in (by_layer(names) if per == "layer" else places).items():
        groups.setdefault(place, []).append(name)
    columns = {
        "layer": _column(layer for layer, _ in groups),
        "group" if per == "layer" else "module": [label for _, label in groups],
    }
    return columns, list(groups.values()), None


def _column(layers: Iterable[int | None]) -> pd.Series:
    # Layer numbers as plain integers and None, which JSON and Parquet both take.
    return pd.Series(list(layers), dtype=object)


def _sums(
    fisher: Fisher,
    theta: dict[str, Tensor] | None,
    slices: list[Head] | None,
    members: list[list[str]],
) -> tuple[np.ndarray, float]:
    # Importance of each aggregate and of all parameters, mean per unit, not normalised.
    squared = squares(fisher)
    whole = {
        name: _total(squared[name], None if theta is None else theta[name])
        for name in fisher.identity.parameters
    }
    denominator = fisher.denominator()
    if slices is None:
        sums = [math.fsum(whole[name] for name in names) for names in members]
    else:
        sums = [
            math.fsum(
                _total(
                    part.of(squared[part.tensor]),
                    None if theta is None else part.of(theta[part.tensor]),
                )
                for part in head.parts
            )
            for head in slices
        ]
    return np.array(sums) / denominator, math.fsum(whole.values()) / denominator


def _total(sums: Tensor, theta: Tensor | None) -> float:
    if theta is None:
        return float(sums.sum(dtype=torch.float64))
    return float((sums.double() * theta.double().square()).sum()) / 2


def _values(fisher: Fisher, theta: dict[str, Tensor] | None, divisor: float) -> dict[str, Tensor]:
    means = fisher.diagonal()
    if theta is not None:
        means = {
            name: (f.double() * theta[name].double().square() / 2).to(f.dtype)
            for name, f in means.items()
        }
    return {name: mean / divisor for name, mean in means.items()}


def _count(fisher: Fisher, names: list[str]) -> int:
    return sum(math.prod(fisher.identity.parameters[name]) for name in names)


def _head_count(fisher: Fisher, head: Head) -> int:
    shapes = fisher.identity.parameters
    return sum(
        math.prod(shapes[part.tensor]) // shapes[part.tensor][part.dim] * part.length
        for part in head.parts
    )


def _ledger_errors(fisher: Fisher, members: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    # Relative standard errors of the sums, and standard errors of the shares.
    column = {name: at for at, name in enumerate(fisher.ledger.tensors)}
    ledger = fisher.ledger
    squares = ledger.by_group(ledger.squares)
    x = np.stack([squares[:, [column[n] for n in names]].sum(1) for names in members], axis=1)
    by_token = fisher.identity.unit != "example"
    units = ledger.tokens.astype(np.float64) if by_token else np.ones(len(ledger))
    units = ledger.by_group(units)
    everything = squares.sum(1)
    return _ratio_error(x, units) / (x.sum(0) / units.sum()), _ratio_error(x, everything)


def _ratio_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Delta-method standard error of sum x / sum y over examples, per column of x.
    n = len(x)
    if n < 2:
        return np.full(x.shape[1], np.nan)
    residuals = x - np.outer(y, x.sum(0) / y.sum())
    return np.sqrt(n / (n - 1) * np.square(residuals).sum(0)) / y.sum()


def _half_errors(
    fisher: Fisher,
    theta: dict[str, Tensor] | None,
    slices: list[Head] | None,
    members: list[list[str]],
    share: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    # The same from the difference of the halves, where the ledger can't tell.
    assert fisher.halves is not None
    (a, whole_a), (b, whole_b) = (_sums(half, theta, slices, members) for half in fisher.halves)
    difference = np.abs(a - b) / (a + b)
    share_a, share_b = a / whole_a, b / whole_b
    share_difference = np.abs(share_a - share_b) / (share_a + share_b)
    if slices is not None:
        projections = [(head.attention, head.role) for head in slices]
        difference = _pooled(difference, projections)
        share_difference = _pooled(share_difference, projections)
    trace, _ = _ledger_errors(fisher, members)
    return np.fmax(difference, trace), share_difference * share


def _pooled(values: np.ndarray, labels: list[tuple[str, str]]) -> np.ndarray:
    # Root mean square over equal labels.
    codes = pd.factorize(pd.MultiIndex.from_tuples(labels))[0]
    squares = np.bincount(codes, np.square(values)) / np.bincount(codes)
    return np.sqrt(squares)[codes]
