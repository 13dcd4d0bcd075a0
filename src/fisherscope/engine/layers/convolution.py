"""Convolutions of one to three dimensions, plain and transposed, with groups and stride."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.layers.rule import Rule, fold, tensor_argument
from fisherscope.engine.scores import DenseScore, Score, VectorScore


class ConvolutionRule(Rule):
    """Per-example weight gradients from the backend's own kernel, one example at a time."""

    label = "convolution"

    def __init__(self, module: nn.modules.conv._ConvNd):
        super().__init__(module, {"weight": "dense", "bias": "vector"})
        self.conv = module

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        return (tensor_argument(args),)

    def _weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        conv = self.conv
        return torch.ops.aten.convolution_backward(
            g,
            x,
            conv.weight.detach().to(g.dtype),
            None,
            conv.stride,
            [0] * len(conv.kernel_size) if self._pads else conv.padding,
            conv.dilation,
            conv.transposed,
            conv.output_padding,
            conv.groups,
            [False, True, False],
        )[1]

    @property
    def _pads(self) -> bool:
        return not self.conv.transposed

    def _pad(self, x: Tensor) -> Tensor:
        """Padding of every mode, made explicit so that one kernel call serves them all."""
        if not self._pads:
            return x
        mode = "constant" if self.conv.padding_mode == "zeros" else self.conv.padding_mode
        amounts = self.conv._reversed_padding_repeated_twice
        return F.pad(x, amounts, mode=mode) if any(amounts) else x

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        g = fold(gradient, batch)
        if "bias" in self.parameters:
            yield "bias", VectorScore(g.reshape(batch, g.shape[1], -1).transpose(1, 2))
        if "weight" not in self.parameters:
            return
        x = self._pad(fold(saved[0], batch))
        if g.dtype not in (torch.float32, torch.float64):
            x, g = x.float(), g.float()

        def gradient_of(n: int) -> Tensor:
            return self._weight_gradient(x[n : n + 1], g[n : n + 1])

        def product(delta: Tensor) -> Tensor:
            return torch.stack([(gradient_of(n) * delta).sum() for n in range(batch)])

        def positions() -> tuple[Tensor, Tensor]:
            # The weight gradient of squared inputs under squared gradients is the sum over
            # positions of the squared outer products.
            parts = [
                self._weight_gradient(x[n : n + 1].square(), g[n : n + 1].square())
                for n in range(batch)
            ]
            norms = torch.stack([part.sum() for part in parts])
            return torch.stack(parts).sum(0), norms

        yield "weight", DenseScore(batch, gradient_of, product, positions)


def match(module: nn.Module) -> Rule | None:
    """The rule of a convolution.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it is no convolution.
    """
    return ConvolutionRule(module) if isinstance(module, nn.modules.conv._ConvNd) else None
