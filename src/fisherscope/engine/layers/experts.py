"""Mixtures of experts of transformers: one stack of matrices, rows routed by the model.

Every such class takes (hidden states, chosen experts, routing weights) and declares how its
stack is stored (``transformers.integrations.moe.use_experts_implementation``), so that
transformers can compute it in several ways. This is one more way: it keeps which row belongs
to which position, and shows each of the two products to the observer. A module for which it
computes something else than the module itself takes the slow path.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.engine.expert_scores import ExpertScore
from fisherscope.engine.layers.rule import Rule, TappedRule, UnexpectedShapeError
from fisherscope.engine.scores import Score

_DECLARED = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate")
# Relative distance of two ways to sum the same products.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_LOW_PRECISION = 3e-2


class ProductRule(Rule):
    """One of the two products: ``y_s = x_s W[e_s]ᵀ + b[e_s]`` for every routed row s."""

    label = "experts"

    def __init__(self, module: Any, weight: str):
        self.weight, self.bias = weight, f"{weight}_bias"
        names = (weight, self.bias) if module.has_bias else (weight,)
        super().__init__(module, dict.fromkeys(names, "experts"))
        self.transposed = bool(module.is_transposed)

    def __call__(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The product.

        Args:
            rows: Inputs [rows, in], sorted by expert.
            counts: Number of rows of each expert.

        Returns:
            Outputs [rows, out].
        """
        stack = getattr(self.module, self.weight)
        biases = getattr(self.module, self.bias, None) if self.bias in self.kinds else None
        parts = []
        for expert, own in enumerate(rows.to(stack.dtype).split(list(counts))):
            if not len(own):
                continue
            weight = stack[expert].t() if self.transposed else stack[expert]
            parts.append(F.linear(own, weight, None if biases is None else biases[expert]))
        return torch.cat(parts)

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """Hidden states, position and expert of every row, and the rows unless they are those.

        Args:
            args: The same, or a sentence why the products can't be told.
            output: The product.

        Returns:
            The tensors, detached.

        Raises:
            UnexpectedShapeError: If the products can't be told.
        """
        del output
        if isinstance(args[0], str):
            raise UnexpectedShapeError(args[0])
        return tuple(x.detach() for x in args)

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        hidden, position, expert, *rows = saved
        if len(hidden) % batch:
            raise UnexpectedShapeError(f"{len(hidden)} positions for {batch} examples")
        example = position // (len(hidden) // batch)
        a = rows[0] if rows else hidden[position]
        yield self.weight, ExpertScore(gradient, a, expert, example, batch, self.transposed)
        if self.bias in self.kinds:
            yield self.bias, ExpertScore(gradient, None, expert, example, batch)


class ExpertsRule(TappedRule):
    """Both products of a stack of experts."""

    label = "experts"

    def __init__(self, module: Any):
        self.first = ProductRule(module, "gate_up_proj" if module.has_gate else "up_proj")
        self.second = ProductRule(module, "down_proj")
        super().__init__(module, {**self.first.kinds, **self.second.kinds})
        self.experts = module
        self._own = module.forward
        self._same: bool | None = None  # as the module's own forward pass; unknown at first

    @contextmanager
    def installed(self) -> Generator[None]:  # noqa: D102
        # Not in a hook: by the time hooks run, the forward pass to call is already fixed.
        self.experts.forward = self._forward
        try:
            yield
        finally:
            del self.experts.forward

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = [*args, *kwargs.values()]
        if self._same is None:
            self._same = self._agrees(given, args, kwargs)
        if self._same:
            return self._routed(*given)
        reason = "it computes something else than transformers' experts"
        output = self._own(*args, **kwargs)
        for part in (self.first, self.second):
            output = self.tap(part, (reason,), output) if self.tap is not None else output
        return output

    def _agrees(self, given: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if len(given) != 3 or not all(isinstance(x, Tensor) for x in given) or given[0].ndim != 2:
            return False
        tap, self.tap = self.tap, None
        try:
            with torch.no_grad():
                found, expected = self._routed(*given), self._own(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError):
            return False
        finally:
            self.tap = tap
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        tolerance = _TOLERANCE.get(expected.dtype, _LOW_PRECISION)
        difference = torch.linalg.vector_norm(found.float() - expected.float())
        return bool(difference <= tolerance * torch.linalg.vector_norm(expected.float()))

    def _routed(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The mixture [positions, features] of the experts chosen [positions, choices]."""
        module = self.experts
        expert, order = chosen.reshape(-1).sort(stable=True)
        position = order // chosen.shape[1]
        counts = expert.bincount(minlength=module.num_experts).tolist()
        rows = self._product(self.first, hidden[position], counts, hidden, position, expert)
        rows = module._apply_gate(rows) if module.has_gate else module.act_fn(rows)
        rows = self._product(self.second, rows, counts, hidden, position, expert, rows)
        if module.has_post_expert_norm:
            rows = module.post_expert_norm(rows)
        rows = rows * weights.reshape(-1)[order].unsqueeze(1)
        by_position = torch.empty_like(rows).index_copy(0, order, rows)
        mixed = by_position.view(len(hidden), chosen.shape[1], -1).sum(1)
        return mixed.to(hidden.dtype)

    def _product(
        self, part: ProductRule, rows: Tensor, counts: Sequence[int], *saved: Tensor
    ) -> Tensor:
        output = part(rows, counts)
        return output if self.tap is None else self.tap(part, saved, output)

    def save(self, args: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        raise NotImplementedError("its two products are watched, not the module's output")

    def scores(  # noqa: D102
        self, saved: tuple[Tensor, ...], gradient: Tensor, batch: int
    ) -> Iterator[tuple[str, Score]]:
        raise NotImplementedError("its two products are watched, not the module's output")


def match(module: nn.Module) -> Rule | None:
    """The rule of a mixture of experts.

    Args:
        module: Any module.

    Returns:
        Its rule, or ``None`` if it does not declare how its experts are stored, or somebody
        replaced its forward pass, or its experts are spread over several devices.
    """
    if not all(hasattr(module, name) for name in (*_DECLARED, "num_experts")):
        return None
    if "forward" in vars(module) or getattr(module, "_is_expert_parallel", False):
        return None
    rule = ExpertsRule(module)
    found = {name: p.ndim for name, p in rule.parameters.items()}
    expected = {name: 2 if name.endswith("_bias") else 3 for name in rule.kinds}
    return rule if found == expected else None
