"""Scales and shifts: every normalisation, recognised by what it computes.

A module belongs here if its output is affine in its own vectors, ``y = w ∘ x̂ + b`` or
``y = (1 + w) ∘ x̂``, whatever its class is called. ``x̂`` is the module's own output at a
unit scale and no shift; :func:`match` finds out which value of ``w`` is the unit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.away import device_of, is_away
from fisherscope.engine.layers.rule import (
    Rule,
    UnexpectedShapeError,
    fold,
    positions_last,
    tensor_argument,
)
from fisherscope.engine.scores import Score, VectorScore
from fisherscope.engine.split import class_of

_CHANNEL_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)

# What accelerate's hooks leave in a module.
_OFFLOADING = ("forward", "_old_forward", "_hf_hook")


class AffineRule(Rule):
    """``y = w ∘ x̂ + b`` with ``x̂`` computed by a twin of the module at ``w = unit, b = 0``."""

    label = "norm"

    def __init__(
        self, module: nn.Module, scale: str | None, shift: str | None, unit: float, channels: bool
    ):
        names = {name: "vector" for name in (scale, shift) if name is not None}
        super().__init__(module, names)
        self.scale, self.shift, self.channels = scale, shift, channels
        self._twin = twin(module)
        for name, parameter in self._twin.named_parameters(recurse=False):
            parameter.data.fill_(unit if name == scale else 0.0)
        self._epsilon: float | None = None

    def root_mean_square(self, x: Tensor) -> bool:
        """Whether x̂ is plainly ``x / √(mean x² + ε)``, which is then computed directly.

        Args:
            x: Any input of the module.

        Returns:
            True if it is, for some ε that the module holds.
        """
        tolerance = 1e-5 if x.dtype in (torch.float32, torch.float64) else 2e-2
        for value in vars(self.module).values():
            if not isinstance(value, float) or not 0 <= value < 1e-2:
                continue
            # Small inputs tell where ε is added; for large ones it is lost in rounding.
            self._epsilon = value
            if all(
                torch.allclose(
                    self._normalised(x * size).float(),
                    self._twin(x * size).float(),
                    rtol=tolerance,
                    atol=tolerance,
                )
                for size in (1.0, 1e-1, 1e-2, 1e-3)
            ):
                return True
        self._epsilon = None
        return False

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        del output
        return (tensor_argument(args),)

    def _normalised(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.LayerNorm):
            return F.layer_norm(x, self.module.normalized_shape, None, None, self.module.eps)
        if self._epsilon is not None:
            x = x if x.dtype == torch.float64 else x.float()
            size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * (size.square_().div_(x.shape[-1]).add_(self._epsilon).rsqrt_())
        return self._twin(x)

    def _arrange(self, x: Tensor, batch: int) -> Tensor:
        if self.channels:
            x = fold(x, batch)
            return x.reshape(batch, x.shape[1], -1).transpose(1, 2)
        features = next(iter(self.parameters.values())).numel()
        if x.shape[-1] != features:  # several normalised dimensions
            x = fold(x, batch).reshape(batch, -1, features)
        return positions_last(x, batch)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        if self.scale is not None:
            with torch.no_grad():
                x = self._normalised(saved[0])
            if x.shape != gradient.shape:
                raise UnexpectedShapeError("the norm changed its shape")
            yield self.scale, VectorScore(self._arrange(gradient, batch), self._arrange(x, batch))
        if self.shift is not None:
            yield self.shift, VectorScore(self._arrange(gradient, batch))


def twin(module: nn.Module) -> nn.Module:
    """A copy to experiment on: in eval mode, frozen, without anybody's hooks.

    Args:
        module: A small module.

    Returns:
        The copy.
    """
    # Hooks may hold anything, so they are taken off before copying, not after.
    bare = copy.copy(module)
    offloaded = "_old_forward" in vars(module)
    bare.__dict__ = {
        key: type(value)() if key.endswith("_hooks") or "_hooks_" in key else value
        for key, value in vars(module).items()
        if not (offloaded and key in _OFFLOADING)
    }
    bare.__class__ = class_of(module)
    bare.__dict__["_parameters"] = {n: _whole(p, module) for n, p in module._parameters.items()}
    return copy.deepcopy(bare).eval().requires_grad_(False)


def _whole(parameter: nn.Parameter | None, module: nn.Module) -> nn.Parameter | None:
    # Whoever asks for a twin gives it values.
    if parameter is None or not is_away(parameter):
        return parameter
    zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device_of(module))
    return nn.Parameter(zeros)


def match(module: nn.Module) -> Rule | None:
    """The rule of a scale-and-shift module.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if the module is not affine in one or two vectors.
    """
    own = dict(module.named_parameters(recurse=False))
    if not own or any(True for _ in module.children()):
        return None
    if isinstance(module, _CHANNEL_NORMS):
        scale = "weight" if "weight" in own else None
        return AffineRule(module, scale, "bias" if "bias" in own else None, 1.0, channels=True)
    if isinstance(module, nn.LayerNorm):
        return AffineRule(module, "weight", "bias" if "bias" in own else None, 1.0, channels=False)
    if len(own) > 2 or any(p.ndim != 1 or not p.is_floating_point() for p in own.values()):
        return None
    if len({p.numel() for p in own.values()}) != 1:
        return None
    return _by_behaviour(module, own)


def _by_behaviour(module: nn.Module, own: dict[str, nn.Parameter]) -> Rule | None:
    names = list(own)
    orders = [(names[0], None), (None, names[0])]
    if len(names) == 2:
        orders = [(names[0], names[1]), (names[1], names[0])]
    first = next(iter(own.values()))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, first.numel()), generator=generator).to(device_of(module), first.dtype)
    for scale, shift in orders:
        unit = _unit(twin(module), scale, shift, x, generator)
        if unit is not None:
            rule = AffineRule(module, scale, shift, unit, channels=False)
            with torch.no_grad():
                rule.root_mean_square(x)
            return rule
    return None


def _unit(
    module: nn.Module,
    scale: str | None,
    shift: str | None,
    x: Tensor,
    generator: torch.Generator,
) -> float | None:
    """The scale at which the module returns x̂, or ``None`` if it is not affine like this."""
    own = dict(module.named_parameters(recurse=False))

    def run(w: Tensor | float, b: Tensor | float) -> Tensor:
        for name, value in ((scale, w), (shift, b)):
            if name is not None:
                own[name].data = torch.zeros_like(own[name]) + value
        return module(x).float()

    tolerance = 1e-4 if x.dtype in (torch.float32, torch.float64) else 3e-2

    def same(p: Tensor, q: Tensor) -> bool:
        return p.shape == q.shape and torch.allclose(p, q, rtol=tolerance, atol=tolerance)

    w, b = (torch.randn(x.shape[-1], generator=generator).to(x) for _ in range(2))
    try:
        with torch.no_grad():
            zero = run(0.0, 0.0)
            if scale is None:
                return 0.0 if same(run(0.0, b), zero + b.float()) else None
            unit = run(1.0, 0.0) - zero
            if zero.shape != x.shape or not same(
                run(w, b), zero + unit * w.float() + (b.float() if shift else 0.0)
            ):
                return None
    except Exception:  # the module takes other inputs than a plain tensor: not this family
        return None
    if same(zero, torch.zeros_like(zero)):
        return 1.0
    return 0.0 if same(zero, unit) else None
