"""Weighted sums of every example's squared scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import Prepared, settled


def weighted_squares(prepared: Prepared, weights: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """What each example adds to weighted sums of the Fisher's diagonal.

    One example at a time goes through the model, so that a whole gradient per example fits
    wherever a training step fits.

    Args:
        prepared: A checked request of unit ``"example"`` or ``"token"``.
        weights: Mappings of parameter name to weights of the parameter's shape.

    Returns:
        float64 [examples, mappings], in the order of ``prepared.examples``: summed over the
        example's units, mean over draws.
    """
    return settled(prepared, lambda p: _weighted_squares(p, weights))


def _weighted_squares(prepared: Prepared, weights: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    found = np.zeros((len(prepared.examples), len(weights)))
    held: dict[tuple[int, str], Tensor] = {}
    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        placed = [{n: w.to(sweep.device) for n, w in each.items()} for each in weights]

        def sink(name: str, score: Score, rows: slice, draw: int) -> None:
            del rows
            # A tied parameter's score comes in parts, which are summed before they are squared.
            part = score.dense(slice(0, 1), prepared.parameters[name].shape)[0]
            held[draw, name] = held[draw, name] + part if (draw, name) in held else part

        for row, example in zip(found, prepared.examples, strict=True):

            def close(row: np.ndarray = row) -> None:
                for (_, name), gradient in held.items():
                    squared = gradient.double().square()
                    row += [float((squared * each[name]).sum()) for each in placed]
                held.clear()

            sweep.run([example], prepared.labelling, sink, close=close)
    return found / max(1, prepared.labelling.draws)
