"""What a method of the benchmark is given and what it gives back.

A method's function gets a :class:`Case` that it may change as it likes and returns a
:class:`Prepared`: what one full estimate is (``run``), and the sums that the last run made, in
the model's own parameter names and shapes (``result``). What an estimate needs once for a model
(hooks, wrappers, conversions) is done in the function and not timed; sums are zeroed in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
from models import Shape, loss
from torch import Tensor


@dataclass
class Case:
    """A model with its batch; owned by one method.

    Attributes:
        shape: Where it comes from.
        model: In eval mode, all parameters trainable.
        x: Inputs.
        y: Targets.
        chunk: Examples that the method may handle at a time.
    """

    shape: Shape
    model: nn.Module
    x: Tensor
    y: Tensor
    chunk: int

    def loss(self, x: Tensor, y: Tensor, model: nn.Module | None = None, expand: bool = False):
        """Summed negative log-likelihood of some rows."""
        return loss(self.shape, model or self.model, x, y, expand)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in pieces of ``chunk`` examples."""
        yield from zip(self.x.split(self.chunk), self.y.split(self.chunk), strict=True)

    def zeros(self) -> dict[str, Tensor]:
        """A sum for each parameter."""
        return {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}


@dataclass
class Prepared:
    """One method, ready to run.

    Attributes:
        run: One estimate of the whole batch.
        result: The sums of squares made by the last run; ``None`` where there are none.
        note: Why not all parameters are in the result, in a few words.
    """

    run: Callable[[], object]
    result: Callable[[], dict[str, Tensor]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Attributes:
        name: On the command line and in the raw figures.
        label: In the table.
        prepare: Makes it ready for a case.
        chunked: Whether the fastest chunk is looked for before timing.
        reference: What the result is compared with: ``"diagonal"``, ``"grouped"`` or ``""``.
        families: Model families that it is meant for.
    """

    name: str
    label: str
    prepare: Callable[[Case], Prepared]
    chunked: bool = False
    reference: str = "diagonal"
    families: tuple[str, ...] = ("gpt2", "llama", "resnet")
