"""From estimated Fishers to the rows of ``results.json``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fisherscope.analysis import concentration, masks, overlap, similarity
from fisherscope.errors import ParameterError
from fisherscope.metrics.estimating import Estimated
from fisherscope.metrics.losses import TaskLoss
from fisherscope.naming import addresses
from fisherscope.structures import Fisher

Row = dict[str, Any]
Rows = list[Row]
RELIABLE = 0.2


def importance_rows(fisher: Fisher) -> Rows:
    """How much each tensor matters, with its place in the model.

    Args:
        fisher: One task's Fisher.

    Returns:
        One row per tensor: ``mean`` is the Fisher per parameter and unit, ``share`` the
        tensor's part of the whole trace; ``reliable`` says whether the relative standard
        error is at most 20%.
    """
    frame = fisher.to_frame()
    places = addresses(frame["tensor"])
    whole = fisher.trace()
    errors = share_errors(fisher)
    rows = []
    for row in frame.to_dict(orient="records"):
        layer, module = places[row["tensor"]]
        rows.append({
            "tensor": row["tensor"],
            "layer": layer,
            "module": module,
            "n_parameters": row["n_parameters"],
            "mean": row["mean"],
            "mean_se": row["se"] / row["n_parameters"],
            "relative_se": row["relative_se"],
            "share": row["trace"] / whole if whole else None,
            "share_se": errors[row["tensor"]],
            "reliable": bool(row["relative_se"] <= RELIABLE),
        })
    return rows


def share_errors(fisher: Fisher) -> dict[str, float]:
    """Standard error of each tensor's part of the trace.

    The part is a ratio of two sums over the same examples, so its error is that of the
    ratio (delta method) and not that of the numerator: a long example moves both.

    Args:
        fisher: One task's Fisher.

    Returns:
        Tensor name to standard error; NaN for a single example or a trace of zero.
    """
    squares = fisher.ledger.squares
    totals = squares.sum(1)
    n, whole = len(squares), totals.sum()
    if n < 2 or whole <= 0:
        return dict.fromkeys(fisher.ledger.tensors, float("nan"))
    residuals = squares - np.outer(totals, squares.sum(0) / whole)
    errors = np.sqrt(n / (n - 1) * np.square(residuals).sum(0)) / whole
    return dict(zip(fisher.ledger.tensors, errors.tolist(), strict=True))


def coverage_of(fisher: Fisher) -> dict[str, dict[str, int]]:
    """How many tensors and parameters each rule covered.

    Args:
        fisher: Any task's Fisher; all tasks of a run have the same coverage.

    Returns:
        Rule to counts, the rule with most parameters first.
    """
    found: dict[str, dict[str, int]] = {}
    for row in fisher.to_frame().to_dict(orient="records"):
        counts = found.setdefault(row["rule"], {"tensors": 0, "parameters": 0})
        counts["tensors"] += 1
        counts["parameters"] += row["n_parameters"]
    return dict(sorted(found.items(), key=lambda item: -item[1]["parameters"]))


def concentration_of(fisher: Fisher) -> tuple[dict[str, Any], float]:
    """How few parameters hold how much of the trace.

    Args:
        fisher: One task's Fisher.

    Returns:
        The curve with its split-half band and the mass of the top 0.1%, 1% and 10%; and the
        participation ratio as a number of parameters (of groups for a grouped Fisher).
    """
    found = concentration(fisher)
    frame = found.to_frame()
    curve = {key: frame[key].tolist() for key in ("fraction", "mass", "low", "high")}
    return {**curve, "top": found.top}, found.participation * found.n


def split_half_spearman(fisher: Fisher) -> float | None:
    """Rank correlation of the two halves' estimates over all parameters.

    Args:
        fisher: One task's Fisher.

    Returns:
        The correlation; ``None`` without halves.
    """
    if fisher.halves is None:
        return None
    return similarity(*fisher.halves, permutations=0).value("spearman")


def similarity_rows(fishers: Mapping[str, Fisher], *, seed: int) -> Rows:
    """Similarity of every pair of tasks in every metric.

    Args:
        fishers: Task name to Fisher.
        seed: Keys the permutations of the floor.

    Returns:
        One row per pair and metric; ``low`` and ``high`` are the range over the four pairs
        of a half of one task and a half of the other, whose mean is ``halves``.
    """
    return [
        {"task_a": a, "task_b": b, **row}
        for a, b in itertools.combinations(fishers, 2)
        for row in similarity(fishers[a], fishers[b], seed=seed).to_frame().to_dict("records")
    ]


def overlap_rows(fishers: Mapping[str, Fisher], sparsity: float) -> tuple[Rows, str | None]:
    """How far pruning masks of every pair of tasks keep the same parameters.

    Args:
        fishers: Task name to Fisher.
        sparsity: Share of the parameters that each mask removes.

    Returns:
        One row per pair, and why there are none where masks cannot be made: of grouped
        Fishers, or where every parameter is one that masks leave alone.
    """
    if len(fishers) < 2:
        return [], None
    try:
        kept = {name: masks(fisher, sparsity) for name, fisher in fishers.items()}
    except ParameterError as error:
        return [], str(error)
    rows = []
    for a, b in itertools.combinations(kept, 2):
        found = overlap(kept[a], kept[b]).to_dict()
        del found["frame"]
        rows.append({"task_a": a, "task_b": b, "sparsity": sparsity, **found})
    return rows, None


def task_row(name: str, item: Estimated, loss: TaskLoss, participation: float, top: float) -> Row:
    """One task in a line.

    Args:
        name: The task.
        item: Its Fisher.
        loss: Its loss before anything is changed.
        participation: Participation ratio as a number of parameters.
        top: Mass of the top 1%.

    Returns:
        The row.
    """
    fisher = item.fisher
    trace = fisher.trace()
    return {
        "name": name,
        "n_examples": fisher.n_examples,
        "n_tokens": fisher.n_tokens,
        "loss": loss.value,
        "loss_se": loss.se,
        "trace": trace,
        "trace_se": fisher.standard_error()[""],
        "mean_fisher": trace / fisher.n_parameters,
        "participation": participation,
        "top1_mass": top,
        "split_half_spearman": split_half_spearman(fisher),
        "seconds": item.seconds,
        "skipped": list(fisher.skipped),
    }
