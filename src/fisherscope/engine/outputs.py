"""Outputs of supervised rows: a forward pass per batch, a few rows of logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.head import CHUNK_ELEMENTS, FusedHead, call_model, make_batch
from fisherscope.engine.quiet import undisturbed
from fisherscope.likelihoods import IGNORE, Likelihood


@dataclass(frozen=True, eq=False)
class OutputRows:
    """What the model says at some supervised rows of a batch.

    Attributes:
        ids: Id of each row's example.
        positions: Column of each row among the targets; 0 without positions.
        ranks: Number of each row among the supervised ones of its example.
        targets: [rows], or [rows, values] for a regression.
        outputs: [rows, classes] or [rows, values], fp32 or better.
    """

    ids: list[str]
    positions: Tensor
    ranks: Tensor
    targets: Tensor
    outputs: Tensor


def supervised_outputs(
    model: nn.Module,
    likelihood: Likelihood,
    coverage: Coverage,
    groups: Sequence[Sequence[Example]],
    take: Callable[[OutputRows], None],
) -> None:
    """Hand out the outputs of every supervised row.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        coverage: Its head keeps all logits from existing at once where it is fused.
        groups: Batches of labelled examples.
        take: Called with some rows at a time; rows of one example in order.
    """
    head = coverage.head
    if coverage.single:
        groups = [[example] for group in groups for example in group]
    with undisturbed(model), torch.no_grad():
        for group in groups:
            batch = make_batch(model, group)
            with head.installed():
                output = call_model(model, batch)
            targets = likelihood.targets(batch)
            if not head.fused:
                output = likelihood.outputs(output, targets)
            real = targets.is_floating_point()
            flags = targets.new_ones(len(group), 1, dtype=torch.bool) if real else (
                targets.reshape(len(group), -1) != IGNORE
            )  # fmt: skip
            ranks = flags.long().cumsum(1) - 1
            rows, positions = flags.nonzero(as_tuple=True)
            picked = output.reshape(*flags.shape, -1)[rows, positions]
            own = targets if real else targets.reshape(flags.shape)[rows, positions]
            module = head.module if isinstance(head, FusedHead) else None
            width = picked.shape[1] if module is None else module.weight.shape[0]
            step = max(1, CHUNK_ELEMENTS // width)
            for start in range(0, len(rows), step):
                some = slice(start, start + step)
                outputs = picked[some]
                if module is not None:
                    outputs = F.linear(outputs, module.weight, module.bias)
                if outputs.dtype not in (torch.float32, torch.float64):
                    outputs = outputs.float()
                take(
                    OutputRows(
                        ids=[batch.ids[n] for n in rows[some].tolist()],
                        positions=positions[some].cpu(),
                        ranks=ranks[rows[some], positions[some]].cpu(),
                        targets=own[some],
                        outputs=outputs,
                    )
                )
