"""Convolutions of one to three dimensions, plain and transposed, with groups and stride."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.contraction import at_least_fp32
from fisherscope.engine.layers.rule import Rule, UnexpectedShapeError, fold, tensor_argument
from fisherscope.engine.scores import DenseScore, Score, VectorScore

# Examples whose weight gradients (or patches) are formed at once; measured to be best while
# they stay in the cache.
_MOST_EXAMPLES = 16
_CHUNK_BYTES = 2**20
# The backend's kernel needs several examples at a time to be fast. Where fewer than these fit,
# the weight is so large that a product with the patches outweighs copying them.
_FEWEST_EXAMPLES = 4


class ConvolutionRule(Rule):
    """Per-example weight gradients, a few examples at a time.

    They come from the backend's own kernel or, for large weights, from a product with patches.
    """

    label = "convolution"

    def __init__(self, module: nn.modules.conv._ConvNd):
        super().__init__(module, {"weight": "dense", "bias": "vector"})
        self.conv = module

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        return (tensor_argument(args),)

    def _weight_gradients(self, x: Tensor, g: Tensor) -> Tensor:
        """Weight gradients of a few examples [examples, *weight], as one grouped convolution."""
        # Both are [examples, images, channels, *spatial]; the images of an example are summed.
        conv, count, padding = self.conv, x.shape[0], self.conv.padding
        # Only the shape of the weight enters its own gradient.
        weight = g.new_zeros((conv.weight.shape[0] * count, *conv.weight.shape[1:]))
        found = torch.ops.aten.convolution_backward(
            g.transpose(0, 1).flatten(1, 2),
            x.transpose(0, 1).flatten(1, 2),
            weight,
            None,
            conv.stride,
            padding if self._native and not isinstance(padding, str) else [0] * self._dims,
            conv.dilation,
            conv.transposed,
            conv.output_padding,
            conv.groups * count,
            [False, True, False],
        )[1]
        return found.view(count, *conv.weight.shape)

    @property
    def _dims(self) -> int:
        return len(self.conv.kernel_size)

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
        g = self._images(at_least_fp32(gradient), batch)
        rows = g.movedim(2, -1).reshape(batch, -1, g.shape[2])
        if "bias" in self.parameters:
            yield "bias", VectorScore(rows)
        if "weight" not in self.parameters:
            return
        x = at_least_fp32(saved[0])
        chunk = self._fitting(self.conv.weight.numel() * x.element_size())
        form = self._weight_gradients
        if self._unfolds and chunk < _FEWEST_EXAMPLES:
            chunk = self._fitting(rows.shape[1] * self.conv.weight[0].numel() * x.element_size())
            form = self._patch_products
        else:
            x = self._pad(x)
        x = self._images(x, batch)

        def gradients(some: slice) -> Tensor:
            return form(x[some], g[some])

        def positions(some: slice) -> Tensor:
            # The weight gradient of squared inputs under squared gradients is the sum over
            # positions of the squared outer products.
            return form(x[some].square(), g[some].square())

        def unfolded() -> tuple[Tensor, Tensor]:
            return rows, at_least_fp32(self._patches(saved[0], batch))

        factors = unfolded if self._unfolds else None
        yield "weight", DenseScore(batch, gradients, positions, chunk, factors)

    @staticmethod
    def _fitting(bytes_each: int) -> int:
        return max(1, min(_MOST_EXAMPLES, _CHUNK_BYTES // bytes_each))

    @property
    def factored(self) -> bool:  # noqa: D102
        return self._unfolds and "weight" in self.parameters

    def inputs(self, saved: tuple[Tensor, ...], batch: int) -> Tensor | None:  # noqa: D102
        return self._patches(saved[0], batch) if self._unfolds else None

    def _images(self, x: Tensor, batch: int) -> Tensor:
        """[batch, images, channels, *spatial]; more than one image where a batch is folded."""
        if x.ndim != self._dims + 2:
            raise UnexpectedShapeError(
                f"the convolution was called without a batch: {tuple(x.shape)}"
            )
        return x.unsqueeze(1) if x.shape[0] == batch else fold(x, batch)

    @property
    def _unfolds(self) -> bool:
        """Whether one matrix maps every patch of the input to one position of the output."""
        return not self.conv.transposed and self.conv.groups == 1

    def _patches(self, x: Tensor, batch: int) -> Tensor:
        """Input patches [batch, positions, in * kernel], as in ``weight.reshape(out, -1)``."""
        self._images(x, batch)  # refuses an input without a batch
        width = self.conv.weight[0].numel()
        order = (0, *range(2, 2 + self._dims), 1, *range(2 + self._dims, 2 + 2 * self._dims))
        return self._windows(x).permute(order).reshape(batch, -1, width)

    def _windows(self, x: Tensor) -> Tensor:
        """A view of the padded input [images, in, *positions, *kernel]."""
        conv = self.conv
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        for dim, (size, stride, step) in enumerate(
            zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), start=2
        ):
            x = x.unfold(dim, (size - 1) * step + 1, stride)[..., ::step]
        return x

    def _patch_products(self, x: Tensor, g: Tensor) -> Tensor:
        """Like :meth:`_weight_gradients`, as one product per example with its patches."""
        shape, dims, examples = self.conv.weight.shape, self._dims, x.shape[0]
        # Channels last: a patch is then copied in whole rows of channels.
        x = x.flatten(0, 1).movedim(1, -1).contiguous().movedim(-1, 1)
        order = (0, *range(2, 2 + 2 * dims), 1)
        patches = self._windows(x).permute(order).reshape(examples, -1, shape[1:].numel())
        rows = g.movedim(2, -1).reshape(examples, -1, shape[0])
        found = torch.bmm(rows.transpose(1, 2), patches)
        return found.view(examples, shape[0], *shape[2:], shape[1]).movedim(-1, 2)


def match(module: nn.Module) -> Rule | None:
    """The rule of a convolution.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it is no convolution.
    """
    return ConvolutionRule(module) if isinstance(module, nn.modules.conv._ConvNd) else None
