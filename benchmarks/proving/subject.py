"""The demo's models and rows, and the measured loss of each row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import fisherscope as fs
from fisherscope.data import batches, collate, halves, read_jsonl
from fisherscope.demo import DemoArtifacts, build
from fisherscope.demo.build import WINDOW


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: Rows of each half of each task.
        seeds: Pairs of fine-tuned copies.
        steps: Training steps of each copy.
    """

    rows: int
    seeds: int
    steps: int


@dataclass(frozen=True)
class Subject:
    """The demo, as the studies see it.

    Attributes:
        demo: Its files.
        rows: At most so many rows of each half of each task.
    """

    demo: DemoArtifacts
    rows: int

    @classmethod
    def at(cls, folder: Path, rows: int) -> Subject:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        return cls(build(folder), rows)

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.demo.base)

    def model(self, name: str) -> LlamaForCausalLM:
        return AutoModelForCausalLM.from_pretrained(getattr(self.demo, name)).eval()

    @cached_property
    def tasks(self) -> dict[str, tuple[list[fs.Example], list[fs.Example]]]:
        """Of each task two disjoint halves of held-out rows: one to choose by, one to measure."""
        found = {}
        for task, path in self.demo.tasks.items():
            # Beyond the windows that they were trained on the models know nothing.
            examples = read_jsonl(path, self.tokenizer, max_length=WINDOW)
            first, second = halves(examples)
            found[task] = first[: self.rows], second[: self.rows]
        return found


@dataclass(frozen=True)
class Losses:
    """Of each row, in a fixed order of rows.

    Attributes:
        nats: float64 [n], summed over the row's tokens.
        tokens: float64 [n], supervised ones.
    """

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.inference_mode()
def losses(model: nn.Module, examples: Sequence[fs.Example]) -> Losses:
    """Plain forward passes, with nothing of the library between model and loss."""
    nats, tokens = {}, {}
    for group in batches(examples):
        batch = collate(group)
        assert batch.labels is not None
        logits = batch.call(model, use_cache=False).logits[:, :-1]
        labels = batch.labels[:, 1:]
        each = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        )
        sums, counts = each.view(labels.shape).double().sum(1), (labels != -100).sum(1)
        nats |= dict(zip(batch.ids, sums.tolist(), strict=True))
        tokens |= dict(zip(batch.ids, counts.tolist(), strict=True))
    order = [e.id for e in examples]
    return Losses(
        np.array([nats[i] for i in order]), np.array([tokens[i] for i in order], dtype=float)
    )


RESAMPLES = 2000
Interval = dict[str, float]


def paired(after: Mapping[str, Losses], before: Mapping[str, Losses], seed: int = 0) -> Interval:
    """The difference of two models' losses, nats per token, as the mean over tasks.

    The 95% interval is that of the bootstrap over rows: both models are measured on the same
    resample, and each task is resampled by itself.

    Args:
        after: Task to losses of the one model.
        before: Task to losses of the other, of the same rows.
        seed: Of the resampling.

    Returns:
        ``value``, ``low``, ``high``.
    """
    rng = np.random.default_rng(seed)
    value, resampled = 0.0, np.zeros(RESAMPLES)
    for task, one in after.items():
        other = before[task]
        assert np.array_equal(one.tokens, other.tokens), "paired differences need the same rows"
        difference, n = one.nats - other.nats, len(one.nats)
        counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
        value += difference.sum() / one.tokens.sum() / len(after)
        resampled += (counts @ difference) / (counts @ one.tokens) / len(after)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}
