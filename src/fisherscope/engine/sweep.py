"""One batch through the model: scores of every covered parameter to a sink."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.data import Batch, Example, keyed_uniforms
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.observer import Extent, Observer, Sink
from fisherscope.engine.probe import anchored
from fisherscope.engine.quiet import undisturbed
from fisherscope.engine.scores import DenseScore, Score
from fisherscope.engine.slow import one_by_one
from fisherscope.likelihoods import IGNORE, Likelihood


@dataclass(frozen=True)
class Labelling:
    """Which labels are scored, and how many backward passes that takes.

    Attributes:
        draws: Draws from the model per example; 0 means the data's labels.
        seed: Keys the draws together with example id and position.
        split: Backpropagate every token's own log-probability by itself.
    """

    draws: int = 0
    seed: int = 0
    split: bool = False


class Sweep:
    """The engine, attached to a model inside ``with``: everything stays frozen and hooked.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        coverage: What covers which parameter.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, coverage: Coverage):
        self.model = model
        self.likelihood = likelihood
        self.coverage = coverage
        self.observer = Observer(coverage.rules)
        self._stack = ExitStack()
        self.device = next(model.parameters()).device

    def __enter__(self) -> Sweep:
        self._stack.enter_context(undisturbed(self.model))
        self._stack.enter_context(self.observer)
        self._stack.enter_context(anchored(self.model))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, examples: Sequence[Example], labelling: Labelling, sink: Sink) -> Tensor:
        """Hand the scores of a few examples to the sink.

        Args:
            examples: A batch that fits into memory.
            labelling: Which labels are scored.
            sink: Called with (name, score, rows of the batch, number of the draw). The
                score's sign is that of the loss gradient.

        Returns:
            The summed loss of each example for the data's labels, nats [batch]. If a layer
            was used as its rule does not describe, ``UnexpectedShapeError`` is raised, and
            what the sink received is incomplete.
        """
        if self.coverage.single and len(examples) > 1:
            parts = []
            for n, example in enumerate(examples):

                def shifted(name: str, score: Score, rows: slice, draw: int, n: int = n) -> None:
                    sink(name, score, slice(n + rows.start, n + rows.stop), draw)

                parts.append(self.run([example], labelling, shifted))
            return torch.cat(parts)
        batch = make_batch(self.model, examples)
        targets = self.likelihood.targets(batch)
        uniforms = self._uniforms(batch, targets, labelling)
        if labelling.split and not labelling.draws:
            label_targets = split_targets(targets)
        else:
            label_targets = [targets]
        loss, used = self._fast(batch, label_targets, uniforms, sink)
        if self.coverage.slow:
            self._slow(examples, used, sink)
        return loss

    def _uniforms(self, batch: Batch, targets: Tensor, labelling: Labelling) -> list[Tensor]:
        if not labelling.draws:
            return []
        if targets.is_floating_point():
            positions = np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
        else:
            # The rank among supervised positions: padding on either side does not matter.
            supervised = (targets.reshape(targets.shape[0], -1) != IGNORE).cpu().numpy()
            positions = np.maximum(np.cumsum(supervised, axis=1) - 1, 0)
        return [
            torch
            .from_numpy(keyed_uniforms(labelling.seed, batch.ids, positions, draw))
            .reshape(targets.shape)
            .to(self.device)
            for draw in range(labelling.draws)
        ]

    def _fast(
        self, batch: Batch, label_targets: list[Tensor], uniforms: list[Tensor], sink: Sink
    ) -> tuple[Tensor, list[Tensor]]:
        head, observer = self.coverage.head, self.observer
        kinds = {
            name: {"weight": "matrix"}.get(local, "vector") for local, name in head.names.items()
        }
        used: list[Tensor] = []
        loss = torch.zeros(len(batch.ids), dtype=torch.float64, device=self.device)
        try:
            with torch.enable_grad(), head.installed():
                output = observer.forward(
                    extent_of(batch, self.likelihood.tokenwise),
                    lambda: call_model(self.model, batch),
                    kinds,
                )
            for position, targets in enumerate(label_targets):
                with torch.no_grad():
                    part, sets = head.label_sets(
                        output, targets, uniforms, observer, sink, position
                    )
                loss += part
                last = position == len(label_targets) - 1
                for draw, labels in enumerate(sets):
                    retain = not last or draw < len(sets) - 1
                    observer.backward(output, labels.cotangent, position + draw, sink, retain)
                    used.append(labels.labels)
            if observer.failures:
                raise UnexpectedShapeError(_explain(observer.failures), observer.failures)
        finally:
            observer.finish()
        return loss, used

    def _slow(self, examples: Sequence[Example], used: list[Tensor], sink: Sink) -> None:
        parameters = self.coverage.slow
        for n, example in enumerate(examples):
            batch = make_batch(self.model, [example])
            width = self.likelihood.targets(batch).shape[1:]
            labels = [
                one[n : n + 1, : width[0]] if self.likelihood.tokenwise else one[n : n + 1]
                for one in used
            ]
            sets = one_by_one(self.model, self.likelihood, batch, labels, parameters)
            for draw, gradients in enumerate(sets):
                for name, gradient in gradients.items():
                    score = DenseScore(1, lambda _, g=gradient: g.unsqueeze(0))
                    sink(name, score, slice(n, n + 1), draw)


def extent_of(batch: Batch, tokenwise: bool) -> Extent:
    """How large the batch is that layers see.

    Args:
        batch: The batch.
        tokenwise: Whether there is one output per position.

    Returns:
        Number of examples and positions.
    """
    ids = batch.inputs.get("input_ids")
    positions = ids.shape[1] if ids is not None and ids.ndim == 2 else None
    return Extent(len(batch.ids), positions, tokenwise)


def split_targets(targets: Tensor) -> list[Tensor]:
    """One copy of the targets per supervised slot: the k-th token of every example.

    Args:
        targets: [batch, positions], or one target per example.

    Returns:
        As many tensors as the longest example has supervised tokens, at least one.
    """
    if targets.ndim == 1 or targets.is_floating_point():
        return [targets]
    supervised = targets != IGNORE
    rank = supervised.cumsum(1)
    longest = max(1, int(rank.max()))
    return [
        targets.masked_fill(~(supervised & (rank == slot + 1)), IGNORE) for slot in range(longest)
    ]


def _explain(failures: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(failures.items()))
