"""Covariances of outputs under a posterior, without ever holding a Jacobian."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fisherscope.analysis.uncertainty.posterior import Posterior
from fisherscope.analysis.uncertainty.rows import Question, Rows
from fisherscope.data import Batch, Example
from fisherscope.engine.scores import Score
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.labels import Column, Logit, Rest, Wanted
from fisherscope.likelihoods import IGNORE
from fisherscope.preparation import Prepared, settled

# Elements of the Jacobian of one block that exist at once.
_ELEMENTS = 2**24
Held = dict[str, dict[int, list[tuple[Score, slice]]]]


def covariances(question: Question, rows: Rows, posteriors: Sequence[Posterior]) -> np.ndarray:
    r"""Covariance :math:`J \Sigma J^\top` of the outputs of every row, linearised.

    One backward pass per output and supervised position of the longest example; the scores of
    a batch stay in the form in which the layers deliver them, and become gradients block by
    block, a few rows at a time.

    Args:
        question: The batch.
        rows: Its rows: which outputs.
        posteriors: One or several over the same Fisher; they share the passes.

    Returns:
        float64 [posteriors, n, c, c].
    """
    return settled(question.prepared, lambda p: _covariances(p, question, rows, posteriors))


def _covariances(
    prepared: Prepared, question: Question, rows: Rows, posteriors: Sequence[Posterior]
) -> np.ndarray:
    width = question.width
    found = np.zeros((len(posteriors), len(rows.example), width, width))
    shapes = {name: tuple(p.shape) for name, p in prepared.parameters.items()}
    blocks = posteriors[0].blocks()
    labelling = Labelling(outputs=_wanted(question, rows))
    losses: list[Tensor] = []
    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        for group in question.groups:
            held: Held = defaultdict(lambda: defaultdict(list))

            def sink(name: str, score: Score, where: slice, number: int, held: Held = held) -> None:
                held[name][number].append((score, where))

            def close(group: list[Example] = group, held: Held = held) -> None:
                for slot in sorted({n // width for sets in held.values() for n in sets}):
                    at = _rows_of(question, group, slot, held, width)
                    for names in blocks:
                        _add(found, at, slot, names, shapes, held, posteriors)
                held.clear()

            losses.append(sweep.run(group, labelling, sink, close=close))
        bad = ~np.isfinite(found).all((0, 2, 3))
        names = {rows.ids[n] for n in rows.example[bad]}
        for group, loss in zip(question.groups, losses, strict=True):
            finite = [example.id not in names for example in group]
            sweep.check(finite, group, loss, "the derivative of an output")
    return found


def _rows_of(
    question: Question, group: list[Example], slot: int, held: Held, width: int
) -> dict[int, int]:
    """Examples of the batch with scores in this slot, to the rows of their outputs."""
    covered = {
        n
        for sets in held.values()
        for number, parts in sets.items()
        if number // width == slot
        for _, where in parts
        for n in range(where.start, where.stop)
    }
    tokens = question.prepared.likelihood.tokens
    return {
        n: question.starts[group[n].id] + slot for n in sorted(covered) if tokens(group[n]) > slot
    }


def _add(
    found: np.ndarray,
    at: dict[int, int],
    slot: int,
    names: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    held: Held,
    posteriors: Sequence[Posterior],
) -> None:
    """Add one block's part of the covariance of the rows of one slot."""
    present = [name for name in names if name in held]
    if not present:
        return
    width = found.shape[-1]
    size = sum(math.prod(shapes[name]) for name in present)
    step = max(1, _ELEMENTS // (size * width))
    examples = list(at)
    for start in range(0, len(examples), step):
        some = examples[start : start + step]
        jacobian = {}
        for name in present:
            sets = [held[name].get(slot * width + c, []) for c in range(width)]
            parts = [_gradients(one, some, shapes[name]) for one in sets]
            jacobian[name] = torch.stack(parts, 1).cpu()  # [examples, outputs, *shape]
        flat = {name: j.flatten(0, 1) for name, j in jacobian.items()}
        target = [at[n] for n in some]
        for number, posterior in enumerate(posteriors):
            moved = posterior.multiply(flat)
            for name, j in jacobian.items():
                left = j.flatten(2).double()
                right = moved[name].reshape(left.shape).double()
                found[number, target] += (left @ right.transpose(1, 2)).numpy()


def _gradients(
    parts: Sequence[tuple[Score, slice]], examples: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """Dense gradients of some examples of the batch [examples, *shape]."""
    total: Tensor | None = None
    for score, where in parts:
        place = [i for i, n in enumerate(examples) if where.start <= n < where.stop]
        if not place:
            continue
        first, last = examples[place[0]], examples[place[-1]] + 1
        own = score.dense(slice(first - where.start, last - where.start), shape)
        if total is None:
            total = own.new_zeros((len(examples), *shape))
        total[place] += own[[examples[i] - first for i in place]]
    return torch.zeros((len(examples), *shape)) if total is None else total


def _wanted(question: Question, rows: Rows):
    """What the engine backpropagates: each row's own classes."""

    def outputs(batch: Batch, targets: Tensor) -> list[Wanted]:
        if rows.real:
            return [Column(number) for number in range(question.width)]
        flags = targets.reshape(len(batch.ids), -1) != IGNORE
        ranks = (flags.long().cumsum(1) - 1).clamp_min(0).cpu().numpy()
        starts = np.array([question.starts[i] for i in batch.ids])
        classes = torch.from_numpy(rows.classes[starts[:, None] + ranks]).to(targets.device)
        classes = classes.reshape(*targets.shape, -1)
        found: list[Wanted] = [Logit(one) for one in classes.unbind(-1)]
        return [*found, Rest(classes)] if rows.pooled else found

    return outputs
