"""Number formats of a model's passes, and the scale that keeps fp16 scores in its range."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.engine.contraction import at_least_fp32
from fisherscope.errors import NonFiniteError

LARGEST_SCALE = 2.0**14
"""fp16 ends at 2^16 and begins at 2^-24: half a step below the end for sums of a few scores."""

SMALLEST_SCALE = 2.0**-10
STEP = 2.0**4


class ScaleError(NonFiniteError):
    """Gradients have overflowed, and a smaller scale may do."""


_COARSE = {torch.float16, torch.bfloat16}


@contextmanager
def formats_used(model: nn.Module) -> Generator[set[torch.dtype]]:
    """Note in which floating-point formats a model computes, whatever it holds.

    The parameters alone don't tell: a model may call ``torch.autocast`` in its forward pass.

    Args:
        model: Any module.

    Yields:
        The formats of its parameters and, as they are seen, of its layers' outputs.
    """
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        if isinstance(output, Tensor) and output.is_floating_point():
            found.add(output.dtype)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def coarsest(formats: set[torch.dtype]) -> torch.dtype:
    """The format whose rounding is seen in the scores.

    Args:
        formats: What :func:`formats_used` found.

    Returns:
        A 16-bit format if there is one, float64 if there is nothing else, float32 otherwise.
    """
    if formats & _COARSE:
        return min(formats & _COARSE, key=str)
    return torch.float64 if formats == {torch.float64} else torch.float32


def first_scale(formats: set[torch.dtype]) -> float | None:
    """What a backward pass through these formats is multiplied by.

    Gradients below 2^-24 are zero in fp16, those above 2^16 infinite; bf16 has the range of fp32.
    Powers of two change no digit, and the scores are divided by them again in fp32.

    Args:
        formats: What :func:`formats_used` found.

    Returns:
        A power of two, or ``None`` if no scale is needed.
    """
    return LARGEST_SCALE if torch.float16 in formats else None


def next_scale(scale: float | None) -> float | None:
    """The scale to try after gradients have overflowed.

    Args:
        scale: The one before.

    Returns:
        A smaller one, or ``None`` if there is none left.
    """
    return None if scale is None or scale <= SMALLEST_SCALE else scale / STEP


def unscaled(gradient: Tensor, scale: float) -> Tensor:
    """Take the scale out of a gradient, in a format that holds what is left.

    Args:
        gradient: Of any format.
        scale: What it was multiplied by.

    Returns:
        The gradient itself for a scale of one, otherwise a new tensor in fp32 or better.
    """
    return gradient if scale == 1.0 else at_least_fp32(gradient) / scale
