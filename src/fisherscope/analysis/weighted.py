"""Weighted sums of every example's squared scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fisherscope.data import Example, batches
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import Prepared, settled

# Scores of one parameter for some rows of a batch and one set of labels.
Parts = list[tuple[Score, slice]]


def weighted_squares(prepared: Prepared, weights: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """What each example adds to weighted sums of the Fisher's diagonal.

    Whole gradients are made for one example and one tensor at a time, from scores that a batch
    leaves behind.

    Args:
        prepared: A checked request of unit ``"example"`` or ``"token"``.
        weights: Mappings of parameter name to weights of the parameter's shape.

    Returns:
        float64 [examples, mappings], in the order of ``prepared.examples``: summed over the
        example's units, mean over draws.
    """
    return settled(prepared, lambda p: _weighted_squares(p, weights))


def _weighted_squares(prepared: Prepared, weights: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    place = {example.id: row for row, example in enumerate(prepared.examples)}
    found = np.zeros((len(prepared.examples), len(weights)))
    held: dict[tuple[int, str], Parts] = {}

    def sink(name: str, score: Score, rows: slice, draw: int) -> None:
        held.setdefault((draw, name), []).append((score, rows))

    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        placed = {
            name: torch.stack([each[name].to(sweep.device).flatten() for each in weights])
            for name in prepared.parameters
        }

        def close(group: Sequence[Example]) -> None:
            for (_, name), parts in held.items():
                shape = prepared.parameters[name].shape
                # A model that batches change hands out the rows of one example after another.
                for n in sorted({n for _, rows in parts for n in range(rows.start, rows.stop)}):
                    squared = _gradient(parts, n, shape).square().flatten()
                    sums = (placed[name].to(squared.dtype) * squared).sum(1, dtype=torch.float64)
                    found[place[group[n].id]] += sums.cpu().numpy()
            held.clear()

        for group in batches(prepared.examples, prepared.config.batch_size):
            loss = sweep.run(group, prepared.labelling, sink, close=lambda g=group: close(g))
            finite = np.asarray(np.isfinite(found[[place[e.id] for e in group]]).all(1))
            sweep.check(finite, group, loss)
    return found / max(1, prepared.labelling.draws)


def _gradient(parts: Parts, n: int, shape: torch.Size) -> Tensor:
    # A tied parameter's score comes in parts, which are summed before they are squared.
    own = [
        score.dense(slice(n - rows.start, n - rows.start + 1), shape)[0]
        for score, rows in parts
        if rows.start <= n < rows.stop
    ]
    return own[0] if len(own) == 1 else torch.stack(own).sum(0)
