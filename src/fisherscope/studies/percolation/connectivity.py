"""The neuron graph of a model while its bonds are removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fisherscope.analysis.access import order as descending
from fisherscope.studies.percolation.graph import NeuronGraph
from fisherscope.studies.percolation.null import (
    cluster_sizes,
    configuration_model,
    molloy_reed,
    ordered_threshold,
    random_threshold,
)
from fisherscope.studies.percolation.orders import Order
from fisherscope.studies.percolation.request import Request
from fisherscope.studies.percolation.structural import Clusters, bond_clusters

STRUCTURAL: tuple[Order, ...] = ("fisher", "obd", "magnitude", "inverse", "random")
_NULL_DRAWS = 2
# A rewired graph is only interesting, and cheap, where few bonds are left.
_SPARSE = 0.25


def bond_scores(graph: NeuronGraph, request: Request, order: Order, by: str) -> np.ndarray:
    """What bonds are sorted by: pooled over their weights as units are.

    Args:
        graph: The graph.
        request: The study.
        order: The rule, one of :data:`STRUCTURAL` but ``"random"``.
        by: The task.

    Returns:
        float64 ``[bonds]``.
    """
    weights = request.weights
    if order == "magnitude":
        return np.sqrt(graph.pooled({n: weights[n].double().square() for n in graph.tensors}))
    diagonal = request.diagonals[by]
    if order == "obd":
        costs = {n: diagonal[n].double() * weights[n].double().square() for n in graph.tensors}
        return graph.pooled(costs)
    return graph.pooled(diagonal)


def connectivity(graph: NeuronGraph, request: Request) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clusters of the neuron graph under every order of removing bonds.

    Args:
        graph: The graph.
        request: The study.

    Returns:
        One row per order, task and fraction: shares of the neurons in the largest and second
        largest cluster, susceptibility, whether inputs and outputs are joined, Molloy and Reed's
        κ, and the largest cluster of the configuration model. And one row per order, task and
        threshold; for random orders ``low`` and ``high`` are the extremes of the repetitions.
    """
    first, second = graph.ends()
    bundle = np.repeat(np.arange(len(graph.bundles)), [b.units * b.width for b in graph.bundles])
    rng = np.random.default_rng((request.options.seed, 2))
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for order in STRUCTURAL:
        if order not in request.options.orders:
            continue
        for by in request.sources(order):
            places = [_places(graph, request, order, by, r) for r in _repeated(request, order)]
            runs = [
                bond_clusters(first, second, p, graph.nodes, graph.inputs, graph.outputs)
                for p in places
            ]
            head = {"order": order, "by": by}
            rows += [
                head | row for row in _points(graph, runs, places[0], (first, second), bundle, rng)
            ]
            found += [head | row for row in _thresholds(graph, runs, places, first, second)]
    return pd.DataFrame(rows), pd.DataFrame(found)


def _repeated(request: Request, order: Order) -> range:
    return range(request.options.repetitions if order == "random" else 1)


def _places(
    graph: NeuronGraph, request: Request, order: Order, by: str, repetition: int
) -> np.ndarray:
    if order == "random":
        rng = np.random.default_rng((request.options.seed, 3, repetition))
        return rng.permutation(graph.bonds)
    scores = bond_scores(graph, request, order, by)
    sequence = np.argsort(scores, kind="stable") if order == "inverse" else descending(scores)
    places = np.empty(graph.bonds, dtype=np.int64)
    places[sequence] = np.arange(graph.bonds)
    return places


def grid(bonds: int) -> np.ndarray:
    """Numbers of removed bonds at which the curves are tabled: dense at both ends.

    Args:
        bonds: How many bonds.

    Returns:
        int64, ascending from 0 to ``bonds``.
    """
    ends = np.geomspace(1, bonds / 2, 24)
    return np.unique(np.concatenate([[0], ends, bonds - ends, [bonds]]).round().astype(np.int64))


def _points(
    graph: NeuronGraph,
    runs: list[Clusters],
    places: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    bundle: np.ndarray,
    rng: np.random.Generator,
):
    for removed in grid(graph.bonds):
        at = [(run, int(run.at(removed))) for run in runs]
        giants = [run.giant[i] / graph.nodes for run, i in at]
        row = {
            "removed": int(removed),
            "fraction": removed / graph.bonds,
            "giant": float(np.mean(giants)),
            "low": float(min(giants)),
            "high": float(max(giants)),
            "second": float(np.mean([run.second[i] / graph.nodes for run, i in at])),
            "susceptibility": float(np.mean([run.susceptibility[i] for run, i in at])),
            "spans": float(np.mean([run.spans[i] for run, i in at])),
            "kappa": np.nan,
            "null_giant": np.nan,
        }
        if 1 - row["fraction"] <= _SPARSE:
            left = places >= removed
            first, second = ends[0][left], ends[1][left]
            row["kappa"] = molloy_reed(first, second, graph.nodes)
            rewired = [
                configuration_model(first, second, bundle[left], rng) for _ in range(_NULL_DRAWS)
            ]
            sizes = [cluster_sizes(*pair, graph.nodes).giant for pair in rewired]
            row["null_giant"] = float(np.mean(sizes) / graph.nodes)
        yield row


def _thresholds(
    graph: NeuronGraph,
    runs: list[Clusters],
    places: list[np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
):
    several = {
        "susceptibility": [run.peak(run.susceptibility) for run in runs],
        "second": [run.peak(run.second) for run in runs],
        "spanning": [run.spanning() for run in runs],
        "molloy_reed": [ordered_threshold(first, second, p, graph.nodes) for p in places],
    }
    for quantity, values in several.items():
        ends = (min(values), max(values)) if len(values) > 1 else (np.nan, np.nan)
        yield {
            "quantity": quantity,
            "value": float(np.mean(values)),
            "low": ends[0],
            "high": ends[1],
        }
    yield {
        "quantity": "molloy_reed_random",
        "value": random_threshold(molloy_reed(first, second, graph.nodes)),
        "low": np.nan,
        "high": np.nan,
    }
