"""What a layer family gives the engine: which tensors to save, and the scores made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.engine.scores import Score


class UnexpectedShapeError(Exception):
    """A layer was used in a way its rule does not describe; the caller falls back.

    Args:
        message: What happened.
        names: Requested parameter to reason, where known.
    """

    def __init__(self, message: str, names: Mapping[str, str] | None = None):
        super().__init__(message)
        self.names = dict(names or {})


class Rule(ABC):
    """How the parameters of one module get their per-example scores.

    Attributes:
        label: Word for the plan.
        module: The module observed.
        parameters: Local name to parameter, those that the rule covers.
        kinds: Local name to the kind of score, as in :class:`~fisherscope.engine.scores.Score`.
    """

    label: str

    def __init__(self, module: nn.Module, kinds: dict[str, str]):
        self.module = module
        self.kinds = kinds
        self.parameters = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if name in kinds
        }

    def before(self, args: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
        """Arguments to call the module with; a rule may expand a broadcast batch here."""
        del batch
        return args

    @abstractmethod
    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """Tensors needed in the backward pass, each with the batch first."""

    @abstractmethod
    def scores(
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        """Yield (local parameter name, score) from saved tensors and output gradient."""

    @property
    def factored(self) -> bool:
        """Whether the weight's score is a product with the rows that :meth:`inputs` gives."""
        return False

    def inputs(self, saved: tuple[Tensor, ...], batch: int) -> Tensor | None:
        """The layer's inputs as rows, known before any gradient is.

        Args:
            saved: What :meth:`save` returned.
            batch: Number of examples.

        Returns:
            ``a`` [batch, shared, in] of :meth:`fisherscope.engine.scores.Score.factors`
            where the weight's score has that form, otherwise ``None``.
        """
        del saved, batch
        return None


class TappedRule(Rule):
    """A rule whose uses happen inside the module's forward pass rather than at its output.

    Attributes:
        tap: Set by the observer while it watches: ``tap(part, args, output)`` takes the rule
            that describes the use (this one or a part of it), what that rule's
            :meth:`Rule.save` gets, and what the operation returned; it returns the output
            to go on with.
    """

    tap: Callable[[Rule, tuple[Any, ...], Tensor], Tensor] | None = None

    def during(self) -> AbstractContextManager[Any]:
        """Context that is active while the module runs."""
        return nullcontext()

    def installed(self) -> AbstractContextManager[Any]:
        """Context that is active as long as the model is observed."""
        return nullcontext()


def fold(x: Tensor, batch: int) -> Tensor:
    """Give a tensor the batch as its first dimension.

    Args:
        x: Tensor whose first dimension is the batch, or batch times something.
        batch: Number of examples.

    Returns:
        ``x``, or a view with a leading dimension of ``batch``.

    Raises:
        UnexpectedShapeError: If the first dimension is no multiple of the batch.
    """
    if x.ndim and x.shape[0] == batch:
        return x
    if x.ndim and batch and x.shape[0] % batch == 0 and x.shape[0]:
        return x.reshape(batch, x.shape[0] // batch, *x.shape[1:])
    raise UnexpectedShapeError(f"first dimension of {tuple(x.shape)} is not the batch of {batch}")


def positions_last(x: Tensor, batch: int) -> Tensor:
    """Reshape to [batch, positions, features], the features last.

    Args:
        x: Tensor of any shape with the features last.
        batch: Number of examples.

    Returns:
        A view or copy with three dimensions.

    Raises:
        UnexpectedShapeError: If the batch is not the first dimension.
    """
    x = fold(x, batch)
    if x.ndim < 2:
        raise UnexpectedShapeError(f"no feature dimension in {tuple(x.shape)}")
    return x.unsqueeze(1) if x.ndim == 2 else x.reshape(batch, -1, x.shape[-1])


def tensor_argument(args: tuple[Any, ...]) -> Tensor:
    """The one tensor that a simple layer is called with.

    Args:
        args: Positional arguments of the call.

    Returns:
        The first argument, detached.

    Raises:
        UnexpectedShapeError: If the first argument is not a tensor.
    """
    if not args or not isinstance(args[0], torch.Tensor):
        raise UnexpectedShapeError("the layer was called without a positional tensor")
    return args[0].detach()
