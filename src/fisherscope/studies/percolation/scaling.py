"""How thresholds depend on the size of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from fisherscope.arguments import check_whole
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.results import Result
from fisherscope.structures.intervals import RESAMPLES
from fisherscope.studies.percolation.comparison import check_same
from fisherscope.studies.percolation.graph import neuron_graph
from fisherscope.studies.percolation.result import MODEL, Percolation
from fisherscope.studies.percolation.structural import bond_clusters
from fisherscope.studies.percolation.threshold import Fall, estimate, fall

Outcome = Literal["ok", "not_reached", "too_few_models", "too_few_examples"]
_LEAST_MODELS, _LEAST_DRAWS = 3, 8


@dataclass(frozen=True, eq=False)
class FiniteSize(Result):
    r"""Thresholds against size.

    Attributes:
        points: One row per model, level, order and task: ``size``, the number of units of the
            level, and the critical fraction ``value`` (``midpoint``) with its 95% interval.
        slopes: One row per level, order and task: the ``exponent`` :math:`a` of
            :math:`f_c \propto \mathrm{size}^a` by least squares in logarithms, with its 95%
            bootstrap interval over the same examples for all sizes; ``n_models``; ``outcome``.
        graph: One row per model whose graph was asked for, under random removal of bonds:
            ``nodes``, ``bonds``; ``left``, the fraction of bonds that is left where the second
            largest cluster peaks, mean over the draws; and ``spread``, the standard deviation over
            the draws divided by that mean, the relative width of the transition; with 95%
            intervals over the draws.
        sharpening: The exponent of ``spread`` against ``nodes`` with its interval, in one row;
            −1/3 in random graphs. Empty without graphs.
    """

    points: pd.DataFrame
    slopes: pd.DataFrame
    graph: pd.DataFrame
    sharpening: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """The exponents of the critical fractions.

        Returns:
            A copy of ``slopes``.
        """
        return self.slopes.copy()


@needs_whole
def finite_size(
    studies: Mapping[str, Percolation],
    models: Mapping[str, nn.Module] | None = None,
    *,
    draws: int = 32,
    seed: int = 0,
) -> FiniteSize:
    r"""See how thresholds change with the size of the model.

    A threshold that goes to zero with the size belongs to no large model; one that stays belongs
    to the function. Of a graph of :math:`N` nodes the transition is rounded over a window that
    narrows with :math:`N`, in random graphs as :math:`N^{-1/3}` (Bollobás 1984).

    Intervals are over examples, repetitions and draws. How much two trainings of the same size
    differ is in none of them; several models of one size show it.

    Args:
        studies: Model name to its study (:func:`fisherscope.percolation`), of models of unlike
            size, all over the same examples and with the same seed.
        models: Model name to the model itself, whose neuron graph is then taken apart at random.
            Default: ``None``, no graphs.
        draws: Random orders of removing the bonds of each graph, at least 8. Default: 32.
        seed: Keys these orders and their resampling. Default: 0.

    Returns:
        Thresholds against size, the exponents, and the same for the graphs.

    Raises:
        ParameterError: If there are fewer than two studies, one holds several models, seeds
            differ, or ``draws`` is out of range; or if a model has no graph of neurons. Other
            tasks are a ``TaskError``, other examples an ``IdentityError``.
    """  # noqa: DOC502 (raised by the checks)
    check_same(studies)
    check_whole("draws", draws, low=_LEAST_DRAWS)
    check_whole("seed", seed, low=0)
    falls = _falls(studies)
    points = [
        {
            MODEL: name,
            **dict(zip(("level", "order", "on"), place, strict=True)),
            "size": fell.count,
            **estimate(fell.midpoint(), fell.n_examples),
        }
        for place, models_ in falls.items()
        for name, fell in models_.items()
    ]
    slopes = [
        {**dict(zip(("level", "order", "on"), place, strict=True)), **_slope(list(found.values()))}
        for place, found in falls.items()
    ]
    graph, sharpening = _graphs(models or {}, draws, seed)
    return FiniteSize(
        pd.DataFrame(points), pd.DataFrame(slopes), pd.DataFrame(graph), pd.DataFrame(sharpening)
    )


def _falls(
    studies: Mapping[str, Percolation],
) -> dict[tuple[str, str, str], dict[str, Fall]]:
    found: dict[tuple[str, str, str], dict[str, Fall]] = {}
    for name, study in studies.items():
        (curves,), (tasks,) = study.measured.values(), study.tasks.values()
        for curve in curves:
            for on in tasks:
                if curve.by in {on, ""}:
                    place = (curve.level, curve.order, on)
                    found.setdefault(place, {})[name] = fall(curve, tasks[on], study.seed)
    return found


def _slope(falls: list[Fall]) -> dict[str, Any]:
    known = [fell for fell in falls if fell.informed]
    row: dict[str, Any] = {"n_models": len(known)}
    if len({fell.count for fell in known}) < _LEAST_MODELS:
        return row | _no_exponent("too_few_models")
    y = np.stack([fell.midpoint() for fell in known], axis=1)
    if not np.isfinite(y[0]).all():
        return row | _no_exponent("not_reached")
    if min(fell.n_examples for fell in known) < 2:
        return row | _no_exponent("too_few_examples")
    with np.errstate(invalid="ignore"):
        found = exponents(np.array([fell.count for fell in known]), y)
    # A draw in which a threshold lies beyond its curve could have any exponent.
    unknown = ~np.isfinite(found)
    low = np.quantile(np.where(unknown, -np.inf, found)[1:], 0.025, method="inverted_cdf")
    high = np.quantile(np.where(unknown, np.inf, found)[1:], 0.975, method="inverted_cdf")
    return row | {"exponent": found[0], "low": low, "high": high, "outcome": "ok"}


def exponents(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Exponents of a power law by least squares in logarithms.

    Args:
        sizes: ``[models]``, positive.
        values: ``[draws, models]``, positive.

    Returns:
        float64 ``[draws]``.
    """
    x = np.log(sizes)
    x = x - x.mean()
    return np.log(values) @ x / (x @ x)


def _no_exponent(outcome: Outcome) -> dict[str, Any]:
    return {"exponent": np.nan, "low": np.nan, "high": np.nan, "outcome": outcome}


def _graphs(
    models: Mapping[str, nn.Module], draws: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, spreads, nodes = [], [], []
    for number, (name, model) in enumerate(models.items()):
        try:
            graph = neuron_graph(model, [n for n, _ in model.named_parameters()])
        except ParameterError as error:
            raise ParameterError(f"models[{name!r}]: {error}") from error
        first, second = graph.ends()
        rng = np.random.default_rng((seed, number))
        peaks = []
        for _ in range(draws):
            found = bond_clusters(first, second, rng.permutation(graph.bonds), graph.nodes)
            peaks.append(1 - found.peak(found.second))
        again = np.array(peaks)[rng.integers(0, draws, (RESAMPLES, draws))]
        left = np.concatenate([[np.mean(peaks)], again.mean(1)])
        spread = np.concatenate([[np.std(peaks, ddof=1)], again.std(1, ddof=1)]) / left
        row: dict[str, Any] = {MODEL: name, "nodes": graph.nodes, "bonds": graph.bonds}
        for key, values in (("left", left), ("spread", spread)):
            low, high = np.quantile(values[1:], [0.025, 0.975])
            row |= {key: values[0], f"{key}_low": low, f"{key}_high": high}
        rows.append(row)
        spreads.append(spread)
        nodes.append(graph.nodes)
    if not rows:
        return [], []
    summary: dict[str, Any] = {"n_models": len(rows)}
    if len(set(nodes)) < _LEAST_MODELS:
        return rows, [summary | _no_exponent("too_few_models")]
    found = exponents(np.array(nodes), np.stack(spreads, axis=1))
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return rows, [summary | {"exponent": found[0], "low": low, "high": high, "outcome": "ok"}]
