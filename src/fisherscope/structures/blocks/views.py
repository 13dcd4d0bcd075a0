"""The shapes in which blocks see their parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.vectors import flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]


class View(ABC):
    """A block's parameters as one tensor.

    Attributes:
        shape: Shape of that tensor.
        shapes: The parameters' names and shapes, in the block's order.
    """

    shape: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def join(self, v: Mapping[str, Tensor]) -> Tensor:
        """Turn tensors under all names of the block, ``[..., *shape]``, into one."""

    @abstractmethod
    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`."""


class FlatView(View):
    """Parameters one after another, row-major: ``[p]``.

    Args:
        layout: The block.
        parameters: Names and shapes of all parameters.
    """

    def __init__(self, layout: BlockLayout, parameters: Shapes):
        self.shapes = {name: parameters[name] for name in layout.names}
        self.shape = (sum(map(math.prod, self.shapes.values())),)

    def join(self, v: Mapping[str, Tensor]) -> Tensor:
        """Lay the tensors one after another.

        Args:
            v: Name to tensor ``[..., *shape]``.

        Returns:
            ``[..., p]``.
        """
        return flatten(v, self.shapes)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`.

        Args:
            x: ``[..., p]``.

        Returns:
            Name to tensor ``[..., *shape]``.
        """
        return unflatten(x, self.shapes)


class MatrixView(View):
    """A weight as a matrix of one row per output, a joint bias as its last column.

    Args:
        layout: The block.
        parameters: Names and shapes of all parameters.

    Raises:
        ParameterError: If the weight has fewer than two dimensions, or if the second
            parameter is not a bias of its outputs.
    """

    def __init__(self, layout: BlockLayout, parameters: Shapes):
        self.shapes = {name: parameters[name] for name in layout.names}
        weight = self.shapes[layout.names[0]]
        if len(weight) < 2:
            raise ParameterError(
                f"{layout.names[0]!r} has shape {weight}, but a {layout.kind} block needs a "
                "weight of two or more dimensions; keep vectors in diagonal or dense blocks."
            )
        self._swapped = layout.outputs_second
        self._sides = (weight[1], weight[0], *weight[2:]) if self._swapped else weight
        self._weight = layout.names[0]
        self._bias = layout.names[1] if len(layout.names) > 1 else None
        self.outputs, self.inputs = self._sides[0], math.prod(self._sides[1:])
        if self._bias is not None and self.shapes[self._bias] != (self.outputs,):
            raise ParameterError(
                f"{self._bias!r} has shape {self.shapes[self._bias]}, but the weight "
                f"{self._weight!r} has {self.outputs} outputs, so it is not its bias."
            )
        self.shape = (self.outputs, self.inputs + (self._bias is not None))

    def join(self, v: Mapping[str, Tensor]) -> Tensor:
        """Put weight and bias into one matrix.

        Args:
            v: Name to tensor ``[..., *shape]``.

        Returns:
            ``[..., out, in]``, or ``[..., out, in + 1]`` with a bias.
        """
        weight = v[self._weight]
        first = weight.ndim - len(self._sides)
        if self._swapped:
            weight = weight.transpose(first, first + 1)
        matrix = weight.reshape(*weight.shape[:first], self.outputs, self.inputs)
        if self._bias is None:
            return matrix
        return torch.cat([matrix, v[self._bias].unsqueeze(-1)], -1)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`.

        Args:
            x: ``[..., out, in]``, or ``[..., out, in + 1]`` with a bias.

        Returns:
            Name to tensor ``[..., *shape]``.
        """
        first = x.ndim - 2
        weight = x[..., : self.inputs].reshape(*x.shape[:first], *self._sides)
        if self._swapped:
            weight = weight.transpose(first, first + 1)
        found = {self._weight: weight.contiguous()}
        if self._bias is not None:
            found[self._bias] = x[..., -1].contiguous()
        return found
