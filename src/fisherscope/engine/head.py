"""From the model's output to cotangents, with or without ever holding all logits.

For a language model the output head is taken out of the graph: logits, loss, softmax
gradient, the head's own squares and the gradient of the hidden states are made for a few
examples at a time and dropped. With a large vocabulary this is cheaper than a plain
training step, and [batch, tokens, vocabulary] never exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import Batch, Example, collate
from fisherscope.engine.away import device_of, rest
from fisherscope.engine.observer import Observer, Sink
from fisherscope.engine.scores import MatrixScore, VectorScore
from fisherscope.errors import LikelihoodError
from fisherscope.labels import Wanted
from fisherscope.likelihoods import IGNORE, Likelihood

# Logits held at once; small enough to stay in a core's share of the cache hierarchy.
CHUNK_ELEMENTS = 2 * 1024 * 1024


@dataclass(frozen=True)
class LabelSet:
    """One backward pass: the labels used and the derivative at the graph's end."""

    labels: Tensor
    cotangent: Tensor


def model_output(returned: Any) -> Tensor:
    """The tensor of logits (or predictions) in whatever a model returns.

    Args:
        returned: A tensor, a tuple, a dictionary or a transformers output object.

    Returns:
        The logits.

    Raises:
        LikelihoodError: If there is none.
    """
    if isinstance(returned, torch.Tensor):
        return returned
    if isinstance(returned, dict) and isinstance(returned.get("logits"), torch.Tensor):
        return returned["logits"]
    logits = getattr(returned, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(returned, (tuple, list)) and returned and isinstance(returned[0], torch.Tensor):
        return returned[0]
    raise LikelihoodError(
        f"the model returned a {type(returned).__name__} without logits; wrap it so that it "
        "returns a tensor or an output with .logits"
    )


def make_batch(model: nn.Module, examples: Sequence[Example]) -> Batch:
    """Examples as a batch on the model's device, padded with the model's own pad id.

    Args:
        model: Any module.
        examples: At least one example.

    Returns:
        The batch.
    """
    pad_id = getattr(getattr(model, "config", None), "pad_token_id", None)
    device = device_of(model)
    return collate(examples, pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0).to(device)


def call_model(model: nn.Module, batch: Batch) -> Tensor:
    """Run the model on a batch, without a key-value cache.

    Args:
        model: Any module.
        batch: Examples on the model's device.

    Returns:
        Its logits or predictions.
    """
    config = getattr(model, "config", None)
    extra = {"use_cache": False} if getattr(config, "use_cache", None) is not None else {}
    if torch.is_grad_enabled():
        return model_output(batch.call(model, **extra))
    try:
        with warnings.catch_warnings():
            # Checkpointing warns that nothing will get a gradient; here nothing is meant to.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            return model_output(batch.call(model, **extra))
    finally:
        rest(model)  # a backward pass would have done so


class PlainHead:
    """The model's own output is the end of the graph.

    Args:
        likelihood: The model's likelihood.
        last: Requested parameters of a layer whose output is the model's own, so that only
            supervised positions have gradient in it. Default: none.
    """

    fused = False
    names: dict[str, str] = {}

    def __init__(self, likelihood: Likelihood, last: frozenset[str] = frozenset()):
        self.likelihood = likelihood
        self.last = last

    @contextmanager
    def installed(self) -> Generator[None]:
        """Nothing to change in the model.

        Yields:
            Nothing.
        """
        yield

    def label_sets(
        self,
        output: Tensor,
        targets: Tensor,
        wanted: Sequence[Wanted],
        observer: Observer,
        sink: Sink,
        first: int = 0,
        losses_only: bool = False,
    ) -> tuple[Tensor, list[LabelSet]]:
        """Losses and cotangents for the data's labels or for each draw.

        Args:
            output: The model's output, in the graph.
            targets: Aligned targets [batch, ...].
            wanted: What takes the place of the data's labels; nothing: the data's.
            observer: Tells the scale of the cotangents.
            sink: Unused here.
            first: Unused here.
            losses_only: Unused here.

        Returns:
            The summed loss of each example for the data's labels [batch], and the sets.
        """
        del sink, first, losses_only
        output = self.likelihood.outputs(output, targets)
        width = output.shape[-1]
        rows = output.detach().reshape(-1, width)
        rows = rows.clone() if rows.dtype == torch.float64 else rows.to(torch.float32, copy=True)
        flat = targets if targets.shape == output.shape else targets.reshape(-1)
        flattened = [w.map(lambda u: u.reshape(flat.shape)) for w in wanted]
        loss, sets = self.likelihood.evaluate(rows, flat, flattened)
        loss = loss.reshape(targets.shape[0], -1).sum(1)
        return loss, [
            LabelSet(
                labels.reshape(targets.shape), _scaled(derivative, observer).reshape(output.shape)
            )
            for labels, derivative in sets
        ]


class FusedHead:
    """The hidden states before ``lm_head`` are the end of the graph."""

    fused = True

    def __init__(self, likelihood: Likelihood, module: nn.Linear, names: dict[str, str]):
        self.likelihood = likelihood
        self.module = module
        self.names = names  # local -> requested name, of the parameters asked for
        self.last = frozenset(names.values())

    @contextmanager
    def installed(self) -> Generator[None]:
        """Make the head return its input while the model runs.

        Yields:
            Nothing.
        """
        self.module.forward = lambda hidden: hidden  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.module.forward

    def label_sets(
        self,
        output: Tensor,
        targets: Tensor,
        wanted: Sequence[Wanted],
        observer: Observer,
        sink: Sink,
        first: int = 0,
        losses_only: bool = False,
    ) -> tuple[Tensor, list[LabelSet]]:
        """Losses and hidden-state cotangents, in chunks; the head's scores go to the sink.

        Args:
            output: Hidden states [batch, positions, features], in the graph.
            targets: Aligned targets [batch, positions].
            wanted: What takes the place of the data's labels; nothing: the data's.
            observer: Pairs a tied head with its embedding; tells the scale of the cotangents.
            sink: Receives the head's scores.
            first: Number of the first set of labels. Default: 0.
            losses_only: Make no cotangents and no scores. Default: ``False``.

        Returns:
            The summed loss of each example for the data's labels [batch], and the sets.

        Raises:
            LikelihoodError: If hidden states and targets do not align.
        """
        hidden = output.detach()
        if hidden.shape[:2] != targets.shape:
            raise LikelihoodError(
                f"{self.likelihood.name}: hidden states of shape {tuple(hidden.shape)} for targets "
                f"of shape {tuple(targets.shape)}"
            )
        draws = 0 if losses_only else max(1, len(wanted))
        cotangents = [torch.zeros_like(hidden) for _ in range(draws)]
        labels = [targets.clone() for _ in range(draws)]
        losses = hidden.new_zeros(hidden.shape[0], dtype=torch.float64)
        for rows in self._chunks(targets):
            loss, sets, index = self._chunk(
                hidden[rows], targets[rows], [w.map(itemgetter(rows)) for w in wanted]
            )
            losses[rows] = loss
            if losses_only:
                continue
            for draw, (drawn, derivative) in enumerate(sets):
                self._contribute(
                    hidden[rows], derivative, index, rows, first + draw, observer, sink
                )
                scaled = _scaled(derivative, observer).to(hidden.dtype)
                moved = torch.matmul(scaled, self.module.weight.detach())
                _scatter(cotangents[draw][rows], moved, index)
                if index is None:
                    labels[draw][rows] = drawn
                else:
                    labels[draw][rows] = labels[draw][rows].scatter(1, index, drawn)
        return losses, [LabelSet(*pair) for pair in zip(labels, cotangents, strict=True)]

    def _chunks(self, targets: Tensor) -> Iterator[slice]:
        width = self.module.weight.shape[0]
        per_example = max(1, int((targets != IGNORE).sum(1).max())) * width
        size = max(1, CHUNK_ELEMENTS // per_example)
        for start in range(0, targets.shape[0], size):
            yield slice(start, min(start + size, targets.shape[0]))

    def _chunk(self, hidden: Tensor, targets: Tensor, wanted: Sequence[Wanted]):
        """Evaluate the supervised rows of a few examples; their positions come back too."""
        supervised = targets != IGNORE
        longest = max(1, int(supervised.sum(1).max()))
        index: Tensor | None = None
        if longest < targets.shape[1] - 1:
            # Supervised positions first, in order; the tail of shorter rows stays masked.
            order = torch.argsort(supervised.to(torch.int8), dim=1, descending=True, stable=True)
            index = order[:, :longest]
            targets = targets.gather(1, index)
            wanted = [w.map(lambda u, i=index: u.gather(1, i)) for w in wanted]
        picked = _gather(hidden, index)
        bias = self.module.bias
        logits = F.linear(
            picked, self.module.weight.detach(), None if bias is None else bias.detach()
        )
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        batch, positions, width = logits.shape
        loss, sets = self.likelihood.evaluate(
            logits.view(-1, width), targets.reshape(-1), [w.map(torch.flatten) for w in wanted]
        )
        shaped = [
            (labels.view(batch, positions), derivative.view(batch, positions, width))
            for labels, derivative in sets
        ]
        return loss.view(batch, positions).sum(1), shaped, index

    def _contribute(
        self,
        hidden: Tensor,
        derivative: Tensor,
        index: Tensor | None,
        rows: slice,
        draw: int,
        observer: Observer,
        sink: Sink,
    ) -> None:
        if "weight" in self.names:
            score = MatrixScore(derivative, _gather(hidden, index))
            observer.deliver(self.names["weight"], score, rows, draw, sink)
        if "bias" in self.names:
            observer.deliver(self.names["bias"], VectorScore(derivative), rows, draw, sink)


def _scaled(derivative: Tensor, observer: Observer) -> Tensor:
    return derivative if observer.scale == 1.0 else derivative * observer.scale


def _gather(hidden: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return hidden
    return hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))


def _scatter(into: Tensor, values: Tensor, index: Tensor | None) -> None:
    if index is None:
        into.copy_(values)
    else:
        into.scatter_add_(1, index.unsqueeze(-1).expand_as(values), values)


Head = PlainHead | FusedHead
