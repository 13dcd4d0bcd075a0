r"""How much one drawn estimate of the Fisher varies, in closed form.

One token with probabilities :math:`p` adds :math:`s = w^\top u` to a score, where :math:`w` is
the derivative of its logits by one parameter and :math:`E[uu^\top] = \mathrm{diag}(p) - pp^\top`.
With :math:`d = w - p^\top w` it has the variance :math:`v = \sum_c p_c d_c^2` whichever way u is
drawn, and the fourth cumulant

* labels, :math:`u = e_y - p`: :math:`\kappa = \sum_c p_c d_c^4 - 3 v^2`,
* signs, :math:`u = L\varepsilon`: :math:`\kappa = -2 \sum_c p_c^2 d_c^4`.

Tokens are independent, so cumulants add up over those whose scores are summed before squaring:
:math:`\mathrm{Var}\,(\sum_t s_t)^2 = 2 (\sum_t v_t)^2 + \sum_t \kappa_t`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def centred(jacobian: Tensor, p: Tensor) -> Tensor:
    """Derivatives of the logits less their mean under the model.

    Args:
        jacobian: [tokens, classes, parameters].
        p: [tokens, classes].

    Returns:
        ``d`` [tokens, classes, parameters].
    """
    return jacobian - torch.einsum("tc,tcp->tp", p, jacobian).unsqueeze(1)


@dataclass(frozen=True)
class Cumulants:
    """Of the scores of some tokens, for every parameter; sums over tokens.

    Attributes:
        variance: The Fisher's diagonal [parameters].
        labels: Fourth cumulant for drawn labels.
        signs: Fourth cumulant for signs.
    """

    variance: Tensor
    labels: Tensor
    signs: Tensor

    @classmethod
    def of(cls, d: Tensor, p: Tensor) -> Cumulants:
        """Sum over tokens [tokens, classes, parameters]; sums are float64."""
        d2 = d.square()
        weighted = p.unsqueeze(-1) * d2
        v = weighted.sum(1, dtype=torch.float64)
        labels = (weighted * d2).sum(1, dtype=torch.float64) - 3 * v.square()
        signs = -2 * weighted.square().sum((0, 1), dtype=torch.float64)
        return cls(v.sum(0), labels.sum(0), signs)

    def __add__(self, other: Cumulants) -> Cumulants:
        return Cumulants(
            self.variance + other.variance, self.labels + other.labels, self.signs + other.signs
        )

    def of_square(self, sampling: str) -> Tensor:
        """Variance of the squared sum of scores over these tokens, for one draw."""
        return 2 * self.variance.square() + getattr(self, sampling)


@dataclass(frozen=True)
class TraceMoments:
    """Of the squared norm of one example's score, for one draw.

    Attributes:
        mean: The trace of its Fisher.
        labels: Variance for drawn labels.
        signs: Variance for signs.
        token_labels: Variance of each token's own squared norm for drawn labels [tokens].
        token_signs: The same for signs.
    """

    mean: Tensor
    labels: Tensor
    signs: Tensor
    token_labels: Tensor
    token_signs: Tensor

    @classmethod
    def of(cls, d: Tensor, p: Tensor) -> TraceMoments:
        r"""Moments of :math:`\|\sum_t J_t^\top u_t\|^2` from ``d`` [tokens, classes, parameters].

        With the rows :math:`\sqrt{p_c}\, d_c` as B and :math:`M = BB^\top`, signs give
        :math:`2 (\|M\|^2 - \sum_i M_{ii}^2)`. Labels differ within each token only, where
        :math:`u_t^\top K u_t` takes the value :math:`M_{cc} / p_c` with probability p_c.
        """
        tokens, classes = p.shape
        b = (d * p.sqrt().unsqueeze(-1)).flatten(0, 1)
        m = (b @ b.T).double().reshape(tokens, classes, tokens, classes)
        own = torch.stack([m[t, :, t] for t in range(tokens)])
        diagonal = own.diagonal(dim1=1, dim2=2)
        within = own.square().sum((1, 2))
        per_label = diagonal.square() / p.double().clamp_min(torch.finfo(p.dtype).tiny)
        token_labels = per_label.sum(1) - diagonal.sum(1).square()
        token_signs = 2 * (within - diagonal.square().sum(1))
        between = 2 * (m.square().sum() - within.sum())
        return cls(
            diagonal.sum(),
            between + token_labels.sum(),
            between + token_signs.sum(),
            token_labels,
            token_signs,
        )
