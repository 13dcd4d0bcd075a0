"""What a model does on a task, example by example: loss, hits, and distance from another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.quiet import undisturbed
from fisherscope.likelihoods import IGNORE, Likelihood

# Rows of logits whose softmax is held at once, in entries.
_ENTRIES = 4 * 1024 * 1024
State = Callable[[], AbstractContextManager[Any]]


def outcomes(
    model: nn.Module,
    likelihood: Likelihood,
    groups: Sequence[Sequence[Example]],
    states: Mapping[str, State] | None = None,
) -> dict[str, pd.DataFrame]:
    r"""Loss, accuracy and divergence of a model in several states, batch by batch.

    The divergence of a state is :math:`\sum_t KL(p_0(\cdot_t) \| p(\cdot_t))` from the model as
    it is to the state, over an example's supervised positions; for a regression with unit
    variance :math:`\frac12 \|\mu_0 - \mu\|^2`.

    Args:
        model: The model; it comes back untouched if the states do.
        likelihood: Its likelihood.
        groups: Batches of labelled examples.
        states: Name to what makes a context in which the model is in that state, entered anew
            for every batch. Default: only the model as it is, which is always there as
            ``""``.

    Returns:
        State to frame with one row per example: ``example``, ``tokens``, ``loss`` (nats, summed
        over tokens), ``hits`` (tokens whose likeliest label is the data's; NaN for regressions)
        and ``kl`` (nats, summed over tokens).
    """
    every: dict[str, State] = {"": nullcontext, **(states or {})}
    found: dict[str, list[np.ndarray]] = {name: [] for name in every}
    ids: list[str] = []
    with undisturbed(model), torch.no_grad():
        for group in groups:
            batch = make_batch(model, group)
            targets = likelihood.targets(batch)
            reference = None
            for name, state in every.items():
                with state():
                    output = likelihood.outputs(call_model(model, batch), targets)
                reference = output if reference is None else reference
                found[name].append(_scored(likelihood, output, reference, targets))
            ids += batch.ids
    columns = pd.Index(["tokens", "loss", "hits", "kl"])
    frames = {}
    for name, parts in found.items():
        frame = pd.DataFrame(np.concatenate(parts), columns=columns)
        frame.insert(0, "example", ids)
        frames[name] = frame.astype({"tokens": int})
    return frames


def _scored(
    likelihood: Likelihood, output: Tensor, reference: Tensor, targets: Tensor
) -> np.ndarray:
    """Tokens, loss, hits and divergence of each example [batch, 4]."""
    count = len(targets)
    if targets.is_floating_point():
        wide = output.reshape(targets.shape).double()
        loss, _ = likelihood.evaluate(wide.clone(), targets)
        apart = 0.5 * (wide - reference.reshape(targets.shape).double()).square()
        per = [loss, torch.full_like(loss, torch.nan), apart.reshape(count, -1).sum(1)]
        return np.stack([np.ones(count), *(x.double().cpu().numpy() for x in per)], axis=1)
    flat = targets.reshape(-1)
    place = torch.arange(count, device=flat.device).repeat_interleave(flat.numel() // count)
    kept = flat != IGNORE
    flat, place = flat[kept], place[kept]
    logits, others = (x.reshape(-1, x.shape[-1])[kept] for x in (output, reference))
    totals = torch.zeros(count, 4, dtype=torch.float64, device=flat.device)
    step = max(1, _ENTRIES // logits.shape[-1])
    for start in range(0, len(flat), step):
        rows = slice(start, start + step)
        q = torch.log_softmax(logits[rows].double(), -1)
        labels = flat[rows].unsqueeze(-1)
        apart = torch.zeros_like(q[:, 0])
        if output is not reference:
            p = torch.log_softmax(others[rows].double(), -1)
            apart = (p.exp() * (p - q)).sum(-1)
        per = (
            torch.ones_like(q[:, 0]),
            -q.gather(-1, labels).squeeze(-1),
            (q.argmax(-1) == flat[rows]).double(),
            apart,
        )
        for column, values in enumerate(per):
            totals[:, column].index_add_(0, place[rows], values.double())
    return totals.cpu().numpy()
