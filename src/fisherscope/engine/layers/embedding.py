"""Embedding tables, also those whose class computes the ids itself or scales the output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fisherscope.engine.layers.rule import Rule, TappedRule, UnexpectedShapeError, fold
from fisherscope.engine.scores import EmbeddingScore, Score


class EmbeddingRule(Rule):
    """``y_t = W[ids_t]``; a batch of one that would be broadcast later is expanded before."""

    label = "embedding"

    def __init__(self, module: nn.Embedding):
        super().__init__(module, {"weight": "embedding"})
        self.padding_idx = module.padding_idx

    def before(self, args: tuple[Any, ...], batch: int) -> tuple[Any, ...]:  # noqa: D102
        if args and isinstance(args[0], torch.Tensor):
            return (expand(args[0], batch), *args[1:])
        return args

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        if not args or not isinstance(args[0], torch.Tensor) or args[0].is_floating_point():
            raise UnexpectedShapeError("the embedding was called without ids")
        return (args[0],)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        ids = fold(saved[0], batch).reshape(batch, -1)
        g = fold(gradient, batch).reshape(batch, ids.shape[1], -1)
        if self.padding_idx is not None:
            # Autograd defines the derivative of the padding row as zero.
            g = g.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        yield "weight", EmbeddingScore(ids, g)


class TappedEmbeddingRule(EmbeddingRule, TappedRule):
    """An embedding whose class overrides ``forward``: observed at the look-up inside it."""

    label = "embedding (look-up inside the module)"

    def before(self, args: tuple[Any, ...], batch: int) -> tuple[Any, ...]:  # noqa: D102
        self.batch = batch
        return args

    def during(self) -> AbstractContextManager[Any]:  # noqa: D102
        return _LookupTap(self)


class _LookupTap(TorchFunctionMode):
    def __init__(self, rule: TappedEmbeddingRule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if func is not F.embedding or weight is not self.rule.module.weight:
            return func(*args, **kwargs)
        ids = expand(args[0], self.rule.batch)
        output = func(ids, *args[1:], **kwargs)
        return output if self.rule.tap is None else self.rule.tap(self.rule, (ids,), output)


def expand(ids: Tensor, batch: int) -> Tensor:
    """Repeat ids with a batch of one, which the model would broadcast after the look-up.

    Args:
        ids: Ids of any shape.
        batch: Number of examples.

    Returns:
        ``ids`` with a leading dimension of ``batch`` where it was 1.
    """
    if ids.ndim >= 2 and ids.shape[0] == 1 and batch > 1:
        return ids.expand(batch, *ids.shape[1:])
    return ids


def match(module: nn.Module) -> Rule | None:
    """The rule of an embedding.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it is no embedding or one with in-place renormalisation.
    """
    if not isinstance(module, nn.Embedding):
        return None
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    if type(module).forward is nn.Embedding.forward:
        return EmbeddingRule(module)
    return TappedEmbeddingRule(module)
