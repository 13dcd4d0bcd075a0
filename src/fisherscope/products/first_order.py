"""Fisher–vector products with one forward and one ordinary backward pass per set of labels.

``F v = Σ_n ⟨s_n, v⟩ s_n``: the scores of a batch are kept until ``⟨s_n, v⟩`` is known over all
parameters, and then added up with these weights. Nothing is differentiated twice, so fused
attention, mixed precision and checkpointing are no obstacle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fisherscope.data import Example, batches
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import Prepared

# Gradients of single examples that slow parameters may hold at once.
_SLOW_BYTES = 256 * 2**20


def add_products(
    prepared: Prepared, vectors: Mapping[str, Tensor], totals: Mapping[str, Tensor]
) -> None:
    """Add ``Σ_n ⟨s_n, v⟩ s_n`` over all examples and sets of labels.

    Args:
        prepared: The request.
        vectors: Name to tensor [vectors, *shape] on the model's device, fp32 or better.
        totals: Name of every requested parameter to a tensor of the same kind, changed in
            place. A score that is not finite along a vector raises ``NonFiniteError`` with
            the example's id.
    """
    count = len(next(iter(totals.values())))
    held: list[tuple[str, Score, slice, int]] = []
    along: dict[int, Tensor] = {}
    groups = _groups(prepared)
    finite = np.ones(max(map(len, groups)), dtype=bool)

    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        for group in groups:

            def sink(
                name: str, score: Score, rows: slice, draw: int, group: Sequence[Example] = group
            ) -> None:
                held.append((name, score, rows, draw))
                if name not in vectors:
                    return
                if draw not in along:
                    along[draw] = torch.zeros(
                        (count, len(group)), dtype=torch.float64, device=sweep.device
                    )
                along[draw][:, rows] += score.inners(vectors[name].unbind(0))

            def close(group: Sequence[Example] = group) -> None:
                for weights in along.values():
                    finite[: len(group)] &= torch.isfinite(weights).all(0).cpu().numpy()
                for name, score, rows, draw in held:
                    if draw in along:
                        for number, total in enumerate(totals[name]):
                            score.add(total, along[draw][number, rows])
                held.clear()
                along.clear()

            finite[:] = True
            loss = sweep.run(group, prepared.labelling, sink, close=close)
            sweep.check(finite[: len(group)], group, loss, along=" along a vector")


def _groups(prepared: Prepared) -> list[list[Example]]:
    size = prepared.config.batch_size
    slow = sum(p.numel() * 4 for p in prepared.coverage.slow.values())
    groups = batches(prepared.examples, size)
    most = max(1, _SLOW_BYTES // slow) if slow else len(prepared.examples)
    return [group[i : i + most] for group in groups for i in range(0, len(group), most)]
