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
"""

from __future__ import annotations

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


Wanted = Drawn | Signs | Column


def _mixed(value: Tensor) -> Tensor:
    # splitmix64's finaliser; a shift of a signed integer drags its sign along, hence the masks.
    value = (value ^ ((value >> 30) & (2**34 - 1))) * _FIRST
    value = (value ^ ((value >> 27) & (2**37 - 1))) * _SECOND
    return value ^ ((value >> 31) & (2**33 - 1))
