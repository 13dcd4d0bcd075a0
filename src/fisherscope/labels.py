r"""What is backpropagated in place of the data's labels, to estimate the model's own Fisher.

The Fisher in the space of one row of outputs (logits of one token, or predicted values) is
:math:`C = \mathrm{diag}(p) - pp^\top` for a softmax and :math:`I` for a Gaussian of unit
variance. Each kind of label here gives vectors :math:`u` with :math:`E[uu^\top] = C`:

* :class:`Drawn`: the score of a label drawn from the model.
* :class:`Signs`: :math:`L\varepsilon` with random signs :math:`\varepsilon` and the root
  :math:`L = \mathrm{diag}(\sqrt p) - p\sqrt p^\top`, :math:`LL^\top = C` (curvature
  propagation: Martens, Sutskever, Swersky 2012).
* :class:`Column`: one column :math:`\sqrt{p_c}(e_c - p)` of the same root; all columns together
  are the exact expectation over labels.

Two more are no labels but outputs themselves, for the Jacobian of logits: :class:`Logit`, one
logit per row, and :class:`Rest`, the log-sum-exp of all logits but some.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# splitmix64 constants as signed 64-bit integers: torch has no unsigned arithmetic.
_GAMMA = -0x61C8864680B583EB
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


@dataclass(frozen=True)
class Drawn:
    """Labels drawn from the model by inverting its cumulative distribution.

    Attributes:
        uniforms: One number in [0, 1) per row (regression: per value).
    """

    uniforms: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Drawn:
        """The same for other rows.

        Args:
            function: Selects or reshapes rows.

        Returns:
            A new object.
        """
        return Drawn(function(self.uniforms))


@dataclass(frozen=True)
class Signs:
    """Random signs on the columns of the root of the output Fisher.

    Attributes:
        uniforms: One number in [0, 1) per row (regression: per value), which keys the signs.
    """

    uniforms: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Signs:
        """The same for other rows.

        Args:
            function: Selects or reshapes rows.

        Returns:
            A new object.
        """
        return Signs(function(self.uniforms))

    def expand(self, classes: int) -> Tensor:
        """One sign per class, a function of the row's number and the class alone.

        Args:
            classes: Width of the output.

        Returns:
            Booleans [rows, classes].
        """
        keys = (self.uniforms.double() * 2.0**53).long().unsqueeze(-1)
        numbers = torch.arange(1, classes + 1, device=keys.device)
        return _mixed(keys + numbers * _GAMMA) >= 0


@dataclass(frozen=True)
class Column:
    """One column of the root of the output Fisher, the same for every row.

    Attributes:
        number: Class, or value of a regression.
    """

    number: int

    def map(self, function: Callable[[Tensor], Tensor]) -> Column:
        """The same for other rows.

        Args:
            function: Unused.

        Returns:
            The object itself.
        """
        del function
        return self


@dataclass(frozen=True)
class Logit:
    """One logit per row, instead of a log-probability.

    Attributes:
        classes: Which one, int64 of the shape of the targets.
    """

    classes: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Logit:
        """The same for other rows.

        Args:
            function: Selects or reshapes rows.

        Returns:
            A new object.
        """
        return Logit(function(self.classes))


@dataclass(frozen=True)
class Rest:
    """The log-sum-exp of the logits of all classes but some.

    Attributes:
        classes: Those left out, int64 [..., k] with the shape of the targets before.
    """

    classes: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Rest:
        """The same for other rows.

        Args:
            function: Selects or reshapes rows.

        Returns:
            A new object.
        """
        return Rest(torch.stack([function(one) for one in self.classes.unbind(-1)], -1))


Wanted = Drawn | Signs | Column | Logit | Rest


def root(p: Tensor, what: Signs | Column) -> Tensor:
    """One vector of the root of ``diag(p) − ppᵀ`` per row.

    Args:
        p: Probabilities [..., classes]; zero in unsupervised rows.
        what: Which vector.

    Returns:
        A tensor like ``p``, zero where it is.
    """
    if isinstance(what, Signs):
        size = p.sqrt()
        signed = torch.where(what.expand(p.shape[-1]), size, -size)
        return torch.addcmul(signed, p, signed.sum(-1, keepdim=True), value=-1)
    size = p[..., what.number : what.number + 1].sqrt()
    column = -p * size
    column[..., what.number : what.number + 1] += size
    return column


def slope(logits: Tensor, what: Logit | Rest) -> Tensor:
    """The derivative of a logit, or of the log-sum-exp of some, by all logits.

    Args:
        logits: [..., classes].
        what: Which one.

    Returns:
        A new tensor like ``logits``.
    """
    if isinstance(what, Logit):
        return torch.zeros_like(logits).scatter_(-1, what.classes.unsqueeze(-1), 1.0)
    return torch.softmax(logits.scatter(-1, what.classes, -math.inf), -1)


def _mixed(value: Tensor) -> Tensor:
    # splitmix64's finaliser; a shift of a signed integer drags its sign along, hence the masks.
    value = (value ^ ((value >> 30) & (2**34 - 1))) * _FIRST
    value = (value ^ ((value >> 27) & (2**37 - 1))) * _SECOND
    return value ^ ((value >> 31) & (2**33 - 1))
