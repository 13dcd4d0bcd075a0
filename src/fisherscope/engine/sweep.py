"""One batch through the model: scores of every covered parameter to a sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.data import Batch, Example, keyed_uniforms
from fisherscope.distributed import Ranks
from fisherscope.engine.away import device_of
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.formats import ScaleError, next_scale
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.observer import Extent, Observer, Sink
from fisherscope.engine.probe import anchored
from fisherscope.engine.quiet import undisturbed
from fisherscope.engine.scores import DenseScore, Score
from fisherscope.engine.slow import one_by_one
from fisherscope.engine.steps import InStep, Steps
from fisherscope.errors import NonFiniteError
from fisherscope.labels import Column, Drawn, Signs, Wanted
from fisherscope.likelihoods import IGNORE, Likelihood

# Sets of labels between two calls of ``close``: the slow path repeats its forward pass for each
# such group, and a head holds one cotangent for each set of a chunk.
_SETS_AT_ONCE = 16

Inputs = Callable[[str, Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Labelling:
    """Which labels are scored, and how many backward passes that takes.

    Attributes:
        draws: Draws from the model per example; 0 means the data's labels.
        seed: Keys the draws together with example id and position.
        sampling: What a draw is: ``"labels"`` or ``"signs"`` on the root of the output Fisher.
        split: Backpropagate every token's own log-probability by itself.
        columns: How many columns of the root of the output Fisher, token by token, take the
            place of labels: all of them are the exact expectation. 0: none.
        outputs: Says of a batch and its targets what takes the place of labels, token by
            token; as many things for every batch. ``None``: nothing.
    """

    draws: int = 0
    seed: int = 0
    sampling: str = "labels"
    split: bool = False
    columns: int = 0
    outputs: Callable[[Batch, Tensor], Sequence[Wanted]] | None = None


@dataclass(frozen=True)
class _Sets:
    """Sets of labels that share targets: one for each thing wanted, or the data's."""

    targets: Tensor
    wanted: Sequence[Wanted]
    first: int  # number of the first set
    counts: bool  # whether the loss of these targets has not been counted yet


class Sweep:
    """The engine, attached to a model inside ``with``: everything stays frozen and hooked.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        coverage: What covers which parameter.
        ranks: All ranks, if the model is sharded over them; each rank then runs its batches
            within rounds of ``steps``. Default: ``None``.
        spare: An example for passes that count nothing; with ``ranks`` only. Default: ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        coverage: Coverage,
        ranks: Ranks | None = None,
        spare: Example | None = None,
    ):
        self.model = model
        self.likelihood = likelihood
        self.coverage = coverage
        self.observer = Observer(coverage.rules)
        self.observer.scale = coverage.scale or 1.0
        self.steps = Steps()
        if ranks is not None and spare is not None:
            self.steps = InStep(ranks, lambda: self._uncounted(spare))
        self._stack = ExitStack()
        self.device = device_of(model)

    def __enter__(self) -> Sweep:
        self._stack.enter_context(undisturbed(self.model))
        self._stack.enter_context(self.observer)
        self._stack.enter_context(anchored(self.model))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def lower_scale(self) -> bool:
        """Multiply later backward passes by less, after gradients have overflowed.

        Returns:
            Whether there is a smaller scale to try; ``False`` for models without fp16.
        """
        lower = next_scale(self.observer.scale) if self.coverage.scale is not None else None
        if lower is None:
            return False
        self.observer.scale = lower
        return True

    def check(
        self,
        finite: Sequence[bool] | np.ndarray,
        examples: Sequence[Example],
        loss: Tensor,
        what: str = "the score",
        along: str = "",
    ) -> None:
        """Refuse what was made of scores that are not finite.

        Args:
            finite: Whether it is, for each example [batch].
            examples: The batch.
            loss: What :meth:`run` returned for it.
            what: What is not finite, in words. Default: ``"the score"``.
            along: Words behind the example's name. Default: ``""``.

        Raises:
            ScaleError: If a smaller scale may do; ``settled`` starts again with it.
            NonFiniteError: Otherwise.
        """
        bad = [n for n, good in enumerate(finite) if not good]
        if not bad:
            return
        lost = [n for n in bad if not bool(torch.isfinite(loss[n]))]
        named = ", ".join(repr(examples[n].id) for n in (lost or bad)[:5])
        low = self.coverage.scale is not None
        if low and not lost and next_scale(self.observer.scale):
            raise ScaleError(f"{what} of example {named}{along} overflows")
        raise NonFiniteError(
            f"{what} of example {named}{along} is not finite"
            f"{', whatever the loss is scaled by' if low and not lost else ''}; look at this "
            f"example, or use {'bf16 or fp32' if low else 'fp32'} weights"
        )

    def run(
        self,
        examples: Sequence[Example],
        labelling: Labelling,
        sink: Sink,
        *,
        inputs: Inputs | None = None,
        close: Callable[[], None] | None = None,
    ) -> Tensor:
        """Hand the scores of a few examples to the sink.

        Args:
            examples: A batch that fits into memory.
            labelling: Which labels are scored.
            sink: Called with (name, score, rows of the batch, number of the set of labels).
                The score's sign is that of the loss gradient.
            inputs: Called once per use of a weight with a Kronecker form, with (name, input
                rows [batch, shared, in], mask [batch, shared] of the rows that can carry
                gradient or ``None`` for all). Default: ``None``.
            close: Called whenever all scores of some sets of labels have been handed out.
                Default: ``None``.

        Returns:
            The summed loss of each example for the data's labels, nats [batch].

        Raises:
            UnexpectedShapeError: If a layer was used as its rule does not describe; what the
                sink received is incomplete then.
        """
        if self.coverage.single and len(examples) > 1:
            parts = []
            for n, example in enumerate(examples):

                def shifted(name: str, score: Score, rows: slice, draw: int, n: int = n) -> None:
                    sink(name, score, slice(n + rows.start, n + rows.stop), draw)

                parts.append(self.run([example], labelling, shifted, inputs=inputs, close=close))
            return torch.cat(parts)
        batch = make_batch(self.model, examples)
        targets = self.likelihood.targets(batch)
        wanted = (
            labelling.outputs(batch, targets)
            if labelling.outputs is not None
            else self._draws(batch, targets, labelling)
        )
        sets = self._sets(targets, wanted, labelling)
        head, observer = self.coverage.head, self.observer
        kinds = {
            name: {"weight": "matrix"}.get(local, "vector") for local, name in head.names.items()
        }
        loss = torch.zeros(len(batch.ids), dtype=torch.float64, device=self.device)
        used: list[tuple[int, Tensor, Wanted | None]] = []
        try:
            with torch.enable_grad(), head.installed():
                output = observer.forward(
                    extent_of(batch, self.likelihood.tokenwise),
                    lambda: self.steps.forward(lambda: call_model(self.model, batch)),
                    kinds,
                    inputs and self._masked(inputs, batch, targets),
                )
            if inputs is not None and head.fused and "weight" in head.names:
                inputs(head.names["weight"], output.detach(), targets != IGNORE)
            for number, group in enumerate(sets):
                loss += self._backward(output, group, number == len(sets) - 1, sink, used)
                if number == len(sets) - 1 or len(used) >= _SETS_AT_ONCE:
                    if observer.failures:
                        raise UnexpectedShapeError(_explain(observer.failures), observer.failures)
                    if self.coverage.slow:
                        with observer.paused():
                            self._slow(examples, used, sink)
                    used.clear()
                    if close is not None:
                        close()
        finally:
            observer.finish()
        return loss

    def _uncounted(self, example: Example) -> Tensor:
        with torch.enable_grad(), self.observer.paused():
            return call_model(self.model, make_batch(self.model, [example]))

    def _draws(self, batch: Batch, targets: Tensor, labelling: Labelling) -> list[Wanted]:
        if not labelling.draws:
            return []
        if targets.is_floating_point():
            positions = np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
        else:
            # The rank among supervised positions: padding on either side does not matter.
            supervised = (targets.reshape(targets.shape[0], -1) != IGNORE).cpu().numpy()
            positions = np.maximum(np.cumsum(supervised, axis=1) - 1, 0)
        kind = Signs if labelling.sampling == "signs" else Drawn
        return [
            kind(
                torch
                .from_numpy(keyed_uniforms(labelling.seed, batch.ids, positions, draw))
                .reshape(targets.shape)
                .to(self.device)
            )
            for draw in range(labelling.draws)
        ]

    def _sets(self, targets: Tensor, wanted: Sequence[Wanted], labelling: Labelling) -> list[_Sets]:
        if labelling.outputs is not None:
            return [
                _Sets(slot, wanted, number * len(wanted), True)
                for number, slot in enumerate(split_targets(targets))
            ]
        if wanted:
            return [_Sets(targets, wanted, 0, True)]
        if not labelling.columns:
            slots = split_targets(targets) if labelling.split else [targets]
            return [_Sets(slot, (), number, True) for number, slot in enumerate(slots)]
        step, count = _SETS_AT_ONCE, labelling.columns
        return [
            _Sets(slot, [Column(c) for c in range(start, min(start + step, count))],
                  number * count + start, not start)
            for number, slot in enumerate(split_targets(targets))
            for start in range(0, count, step)
        ]  # fmt: skip

    def _masked(
        self, inputs: Inputs, batch: Batch, targets: Tensor
    ) -> Callable[[str, Tensor], None]:
        deliver = masked(inputs, self._active(batch, targets))
        at_end = masked(inputs, targets != IGNORE if targets.ndim == 2 else None)
        last = self.coverage.head.last
        return lambda name, a: (at_end if name in last else deliver)(name, a)

    def _active(self, batch: Batch, targets: Tensor) -> Tensor | None:
        """Positions that can carry gradient: real ones, not after the last supervised one."""
        mask = batch.inputs.get("attention_mask")
        active = mask != 0 if mask is not None and mask.ndim == 2 else None
        if self.likelihood.causal and targets.ndim == 2:
            later = (targets != IGNORE).flip(1).cumsum(1).flip(1) > 0
            fits = active is not None and active.shape == targets.shape
            active = active & later if active is not None and fits else later
        if active is not None and bool(active.all()):
            return None
        return active

    def _backward(
        self,
        output: Tensor,
        group: _Sets,
        last: bool,
        sink: Sink,
        used: list[tuple[int, Tensor, Wanted | None]],
    ) -> Tensor:
        with torch.no_grad():
            loss, sets = self.coverage.head.label_sets(
                output, group.targets, group.wanted, self.observer, sink, group.first
            )
        for place, labels in enumerate(sets):
            number = group.first + place
            retain = not last or place < len(sets) - 1
            self.observer.backward(output, labels.cotangent, number, sink, retain, self.steps)
            wanted = group.wanted[place] if group.wanted else None
            # A drawn label is kept rather than drawn again: rounding might draw another.
            used.append((number, labels.labels, None if isinstance(wanted, Drawn) else wanted))
        return loss if group.counts else torch.zeros_like(loss)

    def _slow(
        self,
        examples: Sequence[Example],
        used: Sequence[tuple[int, Tensor, Wanted | None]],
        sink: Sink,
    ) -> None:
        for n, example in enumerate(examples):
            batch = make_batch(self.model, [example])
            width = self.likelihood.targets(batch).shape[1:]

            def own(x: Tensor, n: int = n, width: torch.Size = width) -> Tensor:
                return x[n : n + 1, : width[0]] if self.likelihood.tokenwise else x[n : n + 1]

            labels = [(own(one), what and what.map(own)) for _, one, what in used]
            slow, scale = self.coverage.slow, self.observer.scale
            found = one_by_one(self.model, self.likelihood, batch, labels, slow, scale, self.steps)
            for (number, _, _), gradients in zip(used, found, strict=True):
                for name, gradient in gradients.items():
                    score = DenseScore(1, lambda _, g=gradient: g.unsqueeze(0))
                    sink(name, score, slice(n, n + 1), number)


def masked(inputs: Inputs, active: Tensor | None) -> Callable[[str, Tensor], None]:
    """Tell with every layer input which of its rows can carry gradient.

    Args:
        inputs: Receives (name, rows [batch, shared, in], mask or ``None``).
        active: Mask of the batch's positions, or ``None`` for a model without positions.

    Returns:
        A function of name and rows.
    """

    def deliver(name: str, a: Tensor) -> None:
        fits = active is not None and a.shape[:2] == active.shape
        inputs(name, a, active if fits else None)

    return deliver


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
