"""Losses alone: a forward pass per batch, nothing kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fisherscope.data import Example
from fisherscope.engine.coverage import Coverage
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.observer import Observer
from fisherscope.engine.quiet import undisturbed
from fisherscope.likelihoods import Likelihood


def example_losses(
    model: nn.Module,
    likelihood: Likelihood,
    coverage: Coverage,
    groups: Sequence[Sequence[Example]],
) -> dict[str, float]:
    """Summed loss of each example for the data's labels.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        coverage: Its head keeps all logits from existing at once where it is fused.
        groups: Batches of examples.

    Returns:
        Example id to loss in nats, summed over the example's tokens.
    """
    losses: dict[str, float] = {}
    head, silent = coverage.head, Observer(())
    if coverage.single:
        groups = [[example] for group in groups for example in group]
    with undisturbed(model), torch.no_grad():
        for group in groups:
            batch = make_batch(model, group)
            with head.installed():
                output = call_model(model, batch)
            targets = likelihood.targets(batch)
            loss, _ = head.label_sets(
                output, targets, (), silent, lambda *_: None, losses_only=True
            )
            losses.update(zip(batch.ids, loss.tolist(), strict=True))
    return losses
