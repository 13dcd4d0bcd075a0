"""What the model says to each task: loss, accuracy, and distance from the intact model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.data import Example, batches
from fisherscope.engine.outputs import OutputRows, supervised_outputs
from fisherscope.errors import ParameterError
from fisherscope.preparation import Prepared

LOSS, CORRECT, DIVERGENCE = range(3)
MOST_BYTES = 4 * 2**30
Measured = dict[str, np.ndarray]
"""Task to float64 ``[3, examples]``: loss in nats, right answers, and KL to the intact model in
nats, each summed over the example's tokens."""


@dataclass(eq=False)
class Task:
    """A task that is watched.

    Attributes:
        name: Its name.
        prepared: The checked request.
        groups: Its examples in batches.
        ids: Ids of the examples in the order of the results.
        tokens: Supervised tokens of each.
        uninformed: Loss in nats per token of a model that ignores its input: the logarithm of the
            number of classes; for a regression that of the best constant.
        intact: Of each chunk of rows, what the intact model said: probabilities and the
            cross-entropy with itself; for a regression its outputs.
    """

    name: str
    prepared: Prepared
    groups: list[list[Example]]
    ids: tuple[str, ...]
    tokens: np.ndarray
    uninformed: float = math.nan
    intact: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Watch:
    """Evaluates every task on the model as it is at the moment.

    The intact model is looked at once, on construction.

    Args:
        model: The model, intact.
        prepared: Task name to checked request.
    """

    def __init__(self, model: nn.Module, prepared: Mapping[str, Prepared]):
        self.model = model
        self.tasks = {name: _task(name, p) for name, p in prepared.items()}
        self.intact: Measured = {name: self._run(t, first=True) for name, t in self.tasks.items()}

    def evaluate(self, on: Iterable[str]) -> Measured:
        """One forward pass over some tasks.

        Args:
            on: Their names.

        Returns:
            The sums of each of their examples.
        """
        return {name: self._run(self.tasks[name], first=False) for name in on}

    def _run(self, task: Task, *, first: bool) -> np.ndarray:
        place = {id: i for i, id in enumerate(task.ids)}
        sums = np.zeros((3, len(task.ids)))
        chunks = iter(task.intact)
        held = 0
        targets: list[Tensor] = []

        def take(rows: OutputRows) -> None:
            nonlocal held
            own = None if first else next(chunks)
            values, said = _measure(rows, own)
            if own is None:
                task.intact.append(said)
                targets.append(rows.targets)
                held += said[0].numel() * said[0].element_size()
                _check_size(task, held)
                task.uninformed = math.log(rows.outputs.shape[-1])
            at = [place[id] for id in rows.ids]
            for row, value in zip(sums, values, strict=True):
                np.add.at(row, at, value.double().cpu().numpy())

        p = task.prepared
        supervised_outputs(self.model, p.likelihood, p.coverage, task.groups, take)
        if targets and targets[0].is_floating_point():
            y = torch.cat(targets).double()
            spread = float((y - y.mean(0)).square().sum(-1).mean())
            task.uninformed = 0.5 * spread + 0.5 * y.shape[-1] * math.log(2 * math.pi)
        # What is no number any more is as bad as can be; a regression has no right answers.
        for row in (LOSS, DIVERGENCE):
            sums[row][~np.isfinite(sums[row])] = np.inf
        return sums


def _task(name: str, prepared: Prepared) -> Task:
    groups = batches(prepared.examples, prepared.config.batch_size)
    ids = tuple(e.id for group in groups for e in group)
    tokens = [prepared.likelihood.tokens(e) for group in groups for e in group]
    return Task(name, prepared, groups, ids, np.array(tokens, dtype=np.float64))


def _measure(
    rows: OutputRows, intact: tuple[Tensor, Tensor] | None
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    # Loss, rightness and divergence of each row; and what a later divergence is measured from.
    z, y = rows.outputs, rows.targets
    if y.is_floating_point():
        y = y.to(z).reshape(len(z), -1)
        own = z if intact is None else intact[0]
        loss = 0.5 * (z - y).square().sum(-1) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
        apart = 0.5 * (z - own).square().sum(-1)
        return (loss, torch.full_like(loss, math.nan), apart), (own, apart)
    normaliser = torch.logsumexp(z, -1)
    loss = normaliser - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    right = (z.argmax(-1) == y).to(z.dtype)
    p = torch.exp(z - normaliser.unsqueeze(-1)) if intact is None else intact[0]
    # KL(p‖q) = cross-entropy less entropy, both by the same arithmetic: zero if nothing moved.
    cross = normaliser - torch.linalg.vecdot(p, z)
    entropy = cross if intact is None else intact[1]
    return (loss, right, cross - entropy), (p, entropy)


def _check_size(task: Task, held: int) -> None:
    if held > MOST_BYTES:
        raise ParameterError(
            f"task {task.name!r}: the intact model's predictions take more than "
            f"{MOST_BYTES / 2**30:.0f} GiB; use max_examples, or shorter examples"
        )
