"""Runs of a brittleness study made by hand."""

from __future__ import annotations

import numpy as np

from fisherscope.studies.brittleness.running import Run


def run(new, old, *, model="m", seed=0, steps=None, outcome="ok", examples=1):
    """A run whose examples all have the losses given, or one column each."""
    losses = {}
    for task, values in {"new": new, **old}.items():
        table = np.asarray(values, dtype=float)
        losses[task] = np.repeat(table[:, None], examples, 1) if table.ndim == 1 else table
    points = len(losses["new"])
    return Run(
        model=model,
        rate=1e-3,
        seed=seed,
        steps=np.arange(points) if steps is None else np.asarray(steps),
        losses=losses,
        tokens={task: np.ones(table.shape[1]) for task, table in losses.items()},
        outcome=outcome,
        looks=[],
    )


def noisy(n_seeds, n_examples, rng, *, slope=1.0, seed_noise=None, example_noise=0.0):
    """Runs on a straight line: progress 0 to 1 in 5 points, damage ``slope`` times as much."""
    progress = np.linspace(0, 1, 5)
    shifts = rng.normal(size=n_seeds) if seed_noise is None else seed_noise
    traits = example_noise * rng.normal(size=n_examples)
    return [
        run(
            3 - progress,
            {"old": 1 + progress[:, None] * (slope + shift + traits)},
            seed=number,
            examples=n_examples,
        )
        for number, shift in enumerate(shifts)
    ]
