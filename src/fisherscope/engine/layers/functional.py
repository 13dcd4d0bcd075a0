"""A module of any class that passes its own weight to ``F.linear``, such as a router."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fisherscope.engine.layers.linear import LinearRule
from fisherscope.engine.layers.rule import Rule, TappedRule
from fisherscope.engine.scores import Score

_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.float, torch.Tensor.double)


class FunctionalLinearRule(TappedRule):
    """``y = x Wᵀ + b``, observed at every call of ``F.linear`` inside the module."""

    label = "linear (inside the module)"

    def __init__(self, module: nn.Module):
        super().__init__(module, {"weight": "matrix", "bias": "vector"})
        self.shifted = LinearRule(module, transposed=False)
        self.plain = LinearRule(module, transposed=False)
        self.plain.kinds.pop("bias")
        self.plain.parameters.pop("bias", None)

    def during(self) -> AbstractContextManager[Any]:  # noqa: D102
        return _LinearTap(self)

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        return self.shifted.save(args, output)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        return self.shifted.scores(saved, gradient, batch)


class _LinearTap(TorchFunctionMode):
    def __init__(self, rule: FunctionalLinearRule):
        super().__init__()
        self.rule = rule
        # The parameters under another precision, which count as themselves.
        self.casts: dict[str, list[Any]] = {n: [] for n in rule.parameters}

    def _is(self, name: str, x: Any) -> bool:
        if name not in self.casts:
            return False
        # As the module holds it now: it may have been gathered or fetched for this pass.
        return any(x is known for known in (getattr(self.rule.module, name), *self.casts[name]))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _CASTS:
            for name, known in self.casts.items():
                if self._is(name, args[0]):
                    known.append(output)
        if func is not F.linear or self.rule.tap is None:
            return output
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        if not self._is("weight", weight):
            return output
        part = self.rule.shifted if self._is("bias", bias) else self.rule.plain
        return self.rule.tap(part, (x,), output)


def match(module: nn.Module) -> Rule | None:
    """The rule of a module with a weight matrix that its own forward pass may apply.

    Args:
        module: Any module that no other family describes.

    Returns:
        Its rule, or ``None`` if it has no matrix named ``weight``. Whether the module does
        call ``F.linear`` shows only when it runs.
    """
    own = dict(module.named_parameters(recurse=False))
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return FunctionalLinearRule(module)
