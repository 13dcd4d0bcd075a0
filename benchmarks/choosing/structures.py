"""How much of the curvature along real steps each structure keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import fisherscope as fs
from choosing import subject
from fisherscope.analysis.damage import inner_products
from fisherscope.data import Example
from fisherscope.preparation import prepare, settled

Delta = dict[str, Tensor]

STRUCTURES = ("diagonal", "kfac", "ekfac", "block")
# One set of drawn labels for the structures and for the full form, so that what differs between
# them is the structure alone.
LABELS: dict[str, Any] = {"fisher_type": "mc", "draws": 8, "sampling": "signs", "seed": 0}
RESAMPLES = 2000
ADAMW_STEPS = 10


def directions(model: LlamaForCausalLM, text: subject.Text, count: int) -> dict[str, list[Delta]]:
    """Steps that somebody might take from here, several of each kind.

    Args:
        model: The model; it comes back untouched.
        text: Training texts.
        count: Steps of each kind.

    Returns:
        Kind to displacements.
    """
    found: dict[str, list[Delta]] = {
        f"gradient step, {task}": [
            fs.descent_step(model, subject.rows(text.training[task], 16, seed))
            for seed in range(count)
        ]
        for task in ("prose", "code")
    }
    found[f"{ADAMW_STEPS} AdamW steps, code"] = [
        _trained(model, text.training["code"], seed) for seed in range(count)
    ]
    generator = torch.Generator().manual_seed(0)
    found["random"] = [
        {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
        for _ in range(count)
    ]
    return found


def _trained(model: LlamaForCausalLM, stream: Tensor, seed: int) -> Delta:
    other = copy.deepcopy(model)
    subject.train(other, stream, ADAMW_STEPS, seed=seed, rate=subject.RATE / 10)
    before = dict(model.named_parameters())
    return {n: (p - before[n]).detach() for n, p in other.named_parameters()}


def shares(
    model: LlamaForCausalLM, data: Sequence[Example], steps: dict[str, list[Delta]]
) -> dict[str, Any]:
    """The quadratic form of each structure over the full one, step by step."""
    prepared = prepare(model, list(data), fs.FisherConfig(**LABELS))
    fishers = {
        s: fs.estimate(model, data, structure=s, progress=False, **LABELS) for s in STRUCTURES
    }
    exact = fs.operator(model, data, curvature="ggn")
    found: dict[str, Any] = {}
    for kind, deltas in steps.items():
        moves = {str(i): delta for i, delta in enumerate(deltas)}
        along = settled(prepared, lambda p, m=moves: inner_products(p, p.labelling, m, False))
        full = np.square(along.sum(2)).sum(1).mean(0) / len(data)
        found[kind] = {
            s: _summary([f.quadratic(d) for d in deltas] / full) for s, f in fishers.items()
        }
        truth = np.array([exact.quadratic(delta) for delta in deltas[:4]])
        found[kind]["drawn over exact"] = float(np.median(full[:4] / truth))
    return found


def _summary(values: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {
        "median": float(np.median(values)),
        "interval": [float(low), float(high)],
        "each": [round(float(x), 4) for x in values],
    }
