"""Convolutions of one to three dimensions, plain and transposed, with groups and stride."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.contraction import at_least_fp32
from fisherscope.engine.layers.rule import Rule, fold, tensor_argument
from fisherscope.engine.scores import DenseScore, Score, VectorScore

# Examples whose weight gradients are formed at once; measured to be best while they stay
# in the cache.
_MOST_EXAMPLES = 16
_CHUNK_BYTES = 2**20


class ConvolutionRule(Rule):
    """Per-example weight gradients from the backend's own kernel, a few examples at a time."""

    label = "convolution"

    def __init__(self, module: nn.modules.conv._ConvNd):
        super().__init__(module, {"weight": "dense", "bias": "vector"})
        self.conv = module

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        return (tensor_argument(args),)

    def _weight_gradients(self, x: Tensor, g: Tensor) -> Tensor:
        """Weight gradients of a few examples [examples, *weight], as one grouped convolution."""
        conv, count = self.conv, x.shape[0]
        # Only the shape of the weight enters its own gradient.
        weight = conv.weight.detach().to(g.dtype).repeat(count, *([1] * (conv.weight.ndim - 1)))
        found = torch.ops.aten.convolution_backward(
            g.reshape(1, count * g.shape[1], *g.shape[2:]),
            x.reshape(1, count * x.shape[1], *x.shape[2:]),
            weight,
            None,
            conv.stride,
            conv.padding if self._native else [0] * len(conv.kernel_size),
            conv.dilation,
            conv.transposed,
            conv.output_padding,
            conv.groups * count,
            [False, True, False],
        )[1]
        return found.view(count, *conv.weight.shape)

    @property
    def _native(self) -> bool:
        """Whether the backend's kernel knows this kind of padding."""
        conv = self.conv
        return conv.transposed or (conv.padding_mode == "zeros" and conv.padding != "same")

    def _pad(self, x: Tensor) -> Tensor:
        if self._native:
            return x
        mode = "constant" if self.conv.padding_mode == "zeros" else self.conv.padding_mode
        return F.pad(x, self.conv._reversed_padding_repeated_twice, mode=mode)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        g = at_least_fp32(fold(gradient, batch))
        if "bias" in self.parameters:
            yield "bias", VectorScore(g.reshape(batch, g.shape[1], -1).transpose(1, 2))
        if "weight" not in self.parameters:
            return
        x = self._pad(at_least_fp32(fold(saved[0], batch)))
        bytes_each = self.conv.weight.numel() * x.element_size()

        def gradients(rows: slice) -> Tensor:
            return self._weight_gradients(x[rows], g[rows])

        def positions(rows: slice) -> Tensor:
            # The weight gradient of squared inputs under squared gradients is the sum over
            # positions of the squared outer products.
            return self._weight_gradients(x[rows].square(), g[rows].square())

        chunk = max(1, min(_MOST_EXAMPLES, _CHUNK_BYTES // bytes_each))
        yield "weight", DenseScore(batch, gradients, positions, chunk)


def match(module: nn.Module) -> Rule | None:
    """The rule of a convolution.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it is no convolution.
    """
    return ConvolutionRule(module) if isinstance(module, nn.modules.conv._ConvNd) else None
