"""Inner products of made-up gradients."""

from __future__ import annotations

import numpy as np

from fisherscope.studies.conflict.rows import ALL, Grams
from fisherscope.studies.conflict.sketch import plan_rows


def grams(tasks, *, layers=1, tokens=None, same=(), variance=0.0):
    """From task to gradients [examples, layers * parameters], layers side by side."""
    rows = np.concatenate(list(tasks.values()))
    slices, start = {}, 0
    for task, own in tasks.items():
        slices[task] = slice(start, start + len(own))
        start += len(own)
    parts = np.split(rows, layers, axis=1)
    products = np.stack([part @ part.T for part in parts])
    products = np.concatenate([products, products.sum(0, keepdims=True)])
    distinct = 1 - np.eye(start)
    for i, j in same:
        distinct[i, j] = distinct[j, i] = 0
    scopes = {**{str(i): i for i in range(layers)}, ALL: None}
    return Grams(
        ids={task: tuple(f"{task}-{i}" for i in range(len(own))) for task, own in tasks.items()},
        slices=slices,
        tokens=np.ones(start) if tokens is None else tokens,
        distinct=distinct,
        scopes=scopes,
        products={"plain": products},
        mean_variance={"plain": np.full((layers + 1, len(tasks), len(tasks)), variance)},
        pair_variance={"plain": np.zeros((start, start))},
        plan=plan_rows({"w": rows.shape[1]}, start, "1GB"),
    )
