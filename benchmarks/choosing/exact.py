"""The exact Fisher of a small language model and the exact variances of its estimates.

Everything comes from the Jacobian of the logits, example by example, through plain autograd:
an implementation that shares nothing with the library's own exact expectation over labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from choosing.moments import Cumulants, TraceMoments, centred
from fisherscope.data import Example


@dataclass(frozen=True)
class Exact:
    """Sums over the examples of one data set.

    Attributes:
        examples: Cumulants of each example's score.
        traces: Moments of each example's squared norm.
        entropy: Entropy of every predicted distribution, nats [tokens].
    """

    examples: list[Cumulants]
    traces: list[TraceMoments]
    entropy: Tensor

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of the Fisher [parameters], mean per token."""
        return sum(c.variance for c in self.examples) / len(self.entropy)

    @property
    def trace(self) -> float:
        """Its trace."""
        return float(sum(t.mean for t in self.traces)) / len(self.entropy)

    def diagonal_variance(self, sampling: str, draws: int = 1, together: int = 1) -> Tensor:
        """Variance of the estimated diagonal [parameters].

        Args:
            sampling: ``"labels"`` or ``"signs"``.
            draws: Draws per example.
            together: Consecutive examples whose scores are summed before squaring.
        """
        groups = [
            sum(self.examples[i + 1 : i + together], start=self.examples[i])
            for i in range(0, len(self.examples), together)
        ]
        total = sum(group.of_square(sampling) for group in groups)
        return total / draws / len(self.entropy) ** 2

    def trace_variance(self, sampling: str, draws: int = 1) -> float:
        """Variance of the estimated trace, one example at a time."""
        total = sum(getattr(t, sampling) for t in self.traces)
        return float(total) / draws / len(self.entropy) ** 2


def exact(model: nn.Module, data: Sequence[Example]) -> Exact:
    """Everything about rows without padding, all tokens after the first supervised."""
    parameters = list(model.parameters())
    found, traces, entropies = [], [], []
    for example in data:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no batch of gradients
            ids = example.inputs["input_ids"].unsqueeze(0)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            p = torch.softmax(logits.detach(), -1)
            each = torch.eye(logits.numel()).reshape(-1, *logits.shape)
            parts = torch.autograd.grad(logits, parameters, each, is_grads_batched=True)
        jacobian = torch.cat([x.reshape(len(each), -1) for x in parts], 1)
        d = centred(jacobian.reshape(*p.shape, -1), p)
        found.append(Cumulants.of(d, p))
        traces.append(TraceMoments.of(d, p))
        entropies.append(-(p * p.clamp_min(1e-30).log()).sum(-1))
    return Exact(found, traces, torch.cat(entropies))
