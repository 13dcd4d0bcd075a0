"""Sums of the Fisher diagonal over groups (output neurons, channels, token rows)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.diagonal import COMPARABLE
from fisherscope.structures.fisher import Fisher, Per
from fisherscope.structures.vectors import check_power, check_vector, damp, sampler, total


class GroupedFisher(Fisher):
    """Sums of squared scores of every group of parameters.

    A group is an output neuron of a weight (a row; a column of a transposed weight such as
    HF ``Conv1D``), a channel, a token row of an embedding, or a single element of a vector.
    ``sums[name]`` has as many dimensions as the parameter, with size 1 along those that
    were summed over: ``[out, 1]`` for rows, ``[1, out]`` for columns. So which dimension
    is the group's is never a guess, also for square weights.

    As a matrix it stands for the diagonal averaged within each group: the closest diagonal
    matrix, in the Frobenius norm, that is constant within groups.
    """

    structure: ClassVar[str] = "grouped"

    def groups(self, per: Per = "unit") -> dict[str, Tensor]:
        """The sum of the diagonal over each group.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Parameter name to a new vector with one number per group.
        """
        return {name: tensor.reshape(-1) for name, tensor in self.means(per).items()}

    def diagonal(self, per: Per = "unit") -> dict[str, Tensor]:
        """Not available: the elements within a group are not kept.

        Args:
            per: Unused.

        Raises:
            ParameterError: Always; the message says what to do instead.
        """
        raise ParameterError(
            "a grouped Fisher keeps one number per group, not the diagonal: use .groups(), or "
            'estimate with structure="diagonal".'
        )

    def inner(self, other: Fisher) -> float:
        """Frobenius inner product of the two matrices, each a mean per unit.

        Args:
            other: A Fisher of the same groups of the same model; its data, seed and number
                of draws may differ.

        Returns:
            The sum over groups of the product of both sums, divided by the group's size.

        Raises:
            ParameterError: If the two are grouped along different dimensions.
        """
        self.identity.check(other.identity, ignore=COMPARABLE)
        products = []
        for name in self.identity.parameters:
            mine, theirs = self.sums[name], other.sums[name]
            if mine.shape != theirs.shape:
                raise ParameterError(
                    f"{name!r} is grouped as {tuple(mine.shape)} and {tuple(theirs.shape)}; "
                    "estimate both with the same groups."
                )
            products.append(total(mine, theirs) / self._size(name))
        return math.fsum(products) / self.denominator() / other.denominator()

    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        """The quadratic form of a displacement, mean per unit.

        Args:
            delta: Parameter name to displacement of the parameter's shape.

        Returns:
            The sum over groups of the group's mean times the squared norm of the group's
            displacement.
        """
        check_vector(delta, self.identity.parameters)
        parts = []
        for name, tensor in delta.items():
            d = tensor.detach().cpu()
            rows = self.sums[name].expand(d.shape)
            parts.append(total(rows, d, d) / self._size(name))
        return math.fsum(parts) / self.denominator()

    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product of the matrix, mean per unit, with a vector or a batch of them.

        Args:
            v: Parameter name to tensor of the parameter's shape, all of them with one
                leading dimension more for a batch.

        Returns:
            New CPU tensors under the names of ``v``; absent ones would be zero.
        """
        check_vector(v, self.identity.parameters, batch=True)
        return {name: self._mean(name) * tensor.detach().cpu() for name, tensor in v.items()}

    def solve(
        self, v: Mapping[str, Tensor], *, damping: float, power: float = 1.0
    ) -> dict[str, Tensor]:
        """Solve ``(F + damping I)^power x = v`` with the mean per unit.

        Args:
            v: As for :meth:`matvec`.
            damping: Added to the diagonal; in the units of the diagonal.
            power: Power of the matrix, at least 0. Default: 1.

        Returns:
            New CPU tensors under the names of ``v``.
        """
        check_vector(v, self.identity.parameters, batch=True)
        check_power(power)
        return {
            name: tensor.detach().cpu() / self._damped(name, damping).pow(power)
            for name, tensor in v.items()
        }

    def inverse_diagonal(self, *, damping: float) -> dict[str, Tensor]:
        """The diagonal of ``(F + damping I)^-1`` with the mean per unit.

        Args:
            damping: Added to the diagonal; in the units of the diagonal.

        Returns:
            Every parameter's name to a new tensor of its shape.
        """
        return {
            name: (1 / self._damped(name, damping)).expand(shape).clone()
            for name, shape in self.identity.parameters.items()
        }

    def logdet(self, *, damping: float) -> float:
        """The log-determinant of ``F + damping I`` with the mean per unit.

        Args:
            damping: Added to the diagonal; in the units of the diagonal.

        Returns:
            The sum of logarithms over all parameters, in nats.
        """
        return math.fsum(
            total(self._damped(name, damping), function=torch.log) * self._size(name)
            for name in self.identity.parameters
        )

    def sample(self, n: int = 1, *, damping: float, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the normal distribution with precision ``F + damping I``.

        Args:
            n: Number of independent vectors. Default: 1.
            damping: Added to the diagonal; in the units of the diagonal.
            seed: Seed; equal seeds give equal vectors. Default: 0.

        Returns:
            Parameter name to tensor ``[n, *shape]`` of the type of the sums, with mean 0 and
            covariance ``(F + damping I)^-1``.
        """
        generator = sampler(n, seed)
        return {
            name: torch.randn(n, *shape, generator=generator, dtype=self.sums[name].dtype)
            / self._damped(name, damping).sqrt()
            for name, shape in self.identity.parameters.items()
        }

    # Parameters in each group.
    def _size(self, name: str) -> int:
        return math.prod(self.identity.parameters[name]) // max(self.sums[name].numel(), 1)

    # The diagonal averaged within each group, shaped to broadcast.
    def _mean(self, name: str) -> Tensor:
        return self.sums[name] / (self.denominator() * self._size(name))

    def _damped(self, name: str, damping: float) -> Tensor:
        return damp(name, self._mean(name), damping)

    def _check_shapes(self) -> None:
        for name, shape in self.identity.parameters.items():
            held = tuple(self.sums[name].shape)
            fits = len(held) == len(shape) and all(
                h in {1, s} for h, s in zip(held, shape, strict=True)
            )
            if not fits:
                raise ParameterError(
                    f"sums[{name!r}] has shape {held}; for a parameter of shape {shape} keep the "
                    "dimensions that were summed over with size 1 (rows [out, 1], columns [1, "
                    "out])."
                )
