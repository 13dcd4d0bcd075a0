"""Which attention heads a displacement hurts through, with their cross terms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fisherscope.analysis.heads import Head, heads
from fisherscope.data import batches
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.preparation import Prepared, settled

Moves = Mapping[str, Mapping[str, Tensor]]


def head_damage(prepared: Prepared, moves: Moves) -> pd.DataFrame:
    r"""First and second order of a displacement's damage, head by head.

    With :math:`\delta_h` the part of the displacement in head h, the head's share of the second
    order is :math:`\frac1{2T} \sum_n \langle s_n, \delta_h\rangle \langle s_n, \delta\rangle`: half
    of every cross term with the rest of the model.

    Args:
        prepared: A checked request; its draws and seed are used.
        moves: Label to displacement.

    Returns:
        One row per displacement and head: ``displacement``, ``attention``, ``layer``, ``role``,
        ``head``, ``first`` and ``second`` in nats per token. Every head that several queries
        share counts once.
    """
    found = heads(prepared.model, prepared.parameters)
    config = prepared.config
    total = sum(prepared.likelihood.tokens(e) for e in prepared.examples)
    data = settled(prepared, lambda p: _products(p, Labelling(), moves, found))
    labelling = Labelling(draws=config.draws, seed=config.seed)
    drawn = settled(prepared, lambda p: _products(p, labelling, moves, found))
    first = data[0][0].sum(0) / total
    own, whole = drawn
    second = 0.5 * (own * whole[:, :, None]).mean(0).sum(0) / total
    rows = [
        {
            "displacement": label,
            "attention": head.attention,
            "layer": head.layer,
            "role": head.role,
            "head": head.head,
            "first": first[h, d],
            "second": second[h, d],
        }
        for d, label in enumerate(moves)
        for h, head in enumerate(found)
    ]
    return pd.DataFrame(rows)


def _products(
    prepared: Prepared, labelling: Labelling, moves: Moves, found: list[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products [sets, examples, heads, moves] by head, and [sets, examples, moves] in all."""
    device = next(prepared.model.parameters()).device
    placed = [{n: t.to(device) for n, t in move.items()} for move in moves.values()]
    # Tensor and dimension to the heads that own runs of it.
    owners: dict[str, dict[int, list[tuple[int, slice]]]] = {}
    for h, head in enumerate(found):
        for part in head.parts:
            run = slice(part.start, part.start + part.length)
            owners.setdefault(part.tensor, {}).setdefault(part.dim, []).append((h, run))
    sets = max(1, labelling.draws)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        for group in batches(prepared.examples, prepared.config.batch_size):
            shape = (sets, len(group), len(found), len(placed))
            own = torch.zeros(shape, dtype=torch.float64, device=device)
            whole = own.new_zeros((sets, len(group), len(placed)))

            def sink(
                name: str,
                score: Score,
                rows: slice,
                draw: int,
                own: Tensor = own,
                whole: Tensor = whole,
            ) -> None:
                for d, move in enumerate(placed):
                    if name not in move:
                        continue
                    whole[draw, rows, d] += score.inner(move[name])
                    for dim, runs in owners.get(name, {}).items():
                        along = score.inner_along(move[name], dim).double()
                        for h, run in runs:
                            own[draw, rows, h, d] += along[:, run].sum(1)

            loss = sweep.run(group, labelling, sink)
            finite = torch.isfinite(whole).all((0, 2)) & torch.isfinite(own).all((0, 2, 3))
            sweep.check(finite.tolist(), group, loss, along=" along a displacement")
            parts.append((own.cpu().numpy(), whole.cpu().numpy()))
    own, whole = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    return own, whole
