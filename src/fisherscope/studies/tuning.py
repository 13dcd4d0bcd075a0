"""Fine-tuning as the studies need it: same data, same order, and hooks for what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fisherscope.data import Batch, Example, batches, collate
from fisherscope.engine.head import call_model
from fisherscope.likelihoods import Likelihood

Draw = Callable[[torch.Generator], Batch]
OnStep = Callable[[int, float], bool | None]

SMALLEST_RATE = 0.02


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How one model is trained, with AdamW.

    Attributes:
        steps: Optimiser steps.
        peak: Largest learning rate, reached after the warm-up.
        warmup: Share of the steps in which the rate rises; then it falls as half a cosine.
        weight_decay: Of matrices; norm scales are left alone.
        clip: Largest norm of the gradient.
    """

    steps: int
    peak: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        Args:
            step: Which step, counted from 0.

        Returns:
            A rate above 0 and at most ``peak``.
        """
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.peak * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * (SMALLEST_RATE + (1 - SMALLEST_RATE) * cosine)


def row_batches(rows: Sequence[Example], count: int, *, pad_id: int = 0) -> Draw:
    """Draw batches of examples of similar length, each once before any comes again.

    Args:
        rows: Examples with labels.
        count: Examples per batch.
        pad_id: What pads token ids. Default: 0.

    Returns:
        A function from a generator to a batch.
    """
    groups = [collate(group, pad_id) for group in batches(rows, count)]
    waiting: list[int] = []

    def draw(generator: torch.Generator) -> Batch:
        if not waiting:
            waiting.extend(torch.randperm(len(groups), generator=generator).tolist())
        return groups[waiting.pop()]

    return draw


def fine_tune(
    model: nn.Module,
    draw: Draw,
    schedule: Schedule,
    *,
    likelihood: Likelihood,
    seed: int,
    label: str = "fine-tuning",
    penalty: Callable[[], object] | None = None,
    trainable: Mapping[str, Tensor] | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> tuple[float, ...]:
    """Train a model in place with AdamW on the mean loss per supervised token.

    Only parameters that require a gradient move. A loss that is not finite ends the training
    before the step that it would have caused; it is the last entry of the result.

    Args:
        model: The model; left in evaluation mode and without gradients.
        draw: Makes a batch from a generator.
        schedule: Steps and rates.
        likelihood: The model's likelihood.
        seed: Of the generator that draws the batches, and of dropout.
        label: What the progress bar is called. Default: ``"fine-tuning"``.
        penalty: Called after each backward pass and before clipping; adds its own gradient to
            ``.grad``. Default: none.
        trainable: Parameter name to boolean tensor, true where a weight may move; the others
            stay bitwise what they were. A parameter that is not named moves as a whole.
            Default: all may.
        on_step: Called with step and loss after each step; ``True`` ends the training. Default:
            nothing.
        progress: Whether to show a bar. Default: ``True``.

    Returns:
        Training loss of each step, in nats per token, without the penalty.
    """
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    parameters = [p for p in named.values() if p.requires_grad]
    frozen = _Frozen(named, trainable or {})
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.dim() >= 2],
                "weight_decay": schedule.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    losses: list[float] = []
    model.train()
    bar = tqdm(range(schedule.steps), desc=label, unit="step", disable=not progress)
    try:
        with bar, torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for step in bar:
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(step)
                loss = _backward(model, draw(generator).to(device), likelihood)
                losses.append(loss)
                if not math.isfinite(loss):
                    break
                if penalty is not None:
                    penalty()
                frozen.mask_gradients()
                torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
                optimizer.step()
                optimizer.zero_grad()
                frozen.restore()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if on_step is not None and on_step(step, loss):
                    break
    finally:
        model.zero_grad()
        model.eval()
    return tuple(losses)


def _backward(model: nn.Module, batch: Batch, likelihood: Likelihood) -> float:
    targets = likelihood.targets(batch)
    output = likelihood.outputs(call_model(model, batch), targets)
    flat, supervised = targets, torch.ones(len(targets), dtype=torch.bool)
    if not targets.is_floating_point():
        flat = targets.reshape(-1)
        supervised = flat >= 0
    count = int(supervised.sum())
    rows = output.detach().reshape(-1, output.shape[-1])
    # Logits are large: picking those with a label costs as much as a third of them.
    picks = 3 * count < 2 * len(supervised)
    if picks:
        rows, flat = rows[supervised], flat[supervised]
    wide = torch.promote_types(rows.dtype, torch.float32)
    losses, ((_, derivative),) = likelihood.evaluate(rows.to(wide, copy=not picks), flat)
    derivative.div_(count)
    if picks:
        chosen = derivative
        derivative = chosen.new_zeros(len(supervised), chosen.shape[-1])
        derivative[supervised] = chosen
    else:
        losses = losses[supervised]
    output.backward(derivative.reshape(output.shape).to(output.dtype))
    return float(losses.sum()) / count


class _Frozen:
    """Weights that stay where they are, whatever momentum or weight decay would do."""

    def __init__(self, named: Mapping[str, nn.Parameter], trainable: Mapping[str, Tensor]):
        self.held = [
            (named[name], mask.to(named[name].device), named[name].detach().clone())
            for name, mask in trainable.items()
        ]

    def mask_gradients(self) -> None:
        for parameter, mask, _ in self.held:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, mask, original in self.held:
            parameter.copy_(torch.where(mask, parameter, original))
