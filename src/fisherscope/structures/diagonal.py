"""The diagonal of the Fisher matrix and its algebra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fisherscope.errors import ParameterError
from fisherscope.structures.fisher import Fisher, Per
from fisherscope.structures.vectors import check_power, check_vector, damp, sampler, total

# Comparing two estimates needs the same quantity, not the same random labels.
COMPARABLE = ("data_fingerprint", "version", "seed", "draws")


class DiagonalFisher(Fisher):
    """Sums of squared scores of every single parameter, in the parameters' shapes.

    As a matrix it is diagonal, so every operation is elementwise. Vectors in parameter
    space are mappings from parameter name to tensor; parameters that are absent from one
    count as zero, unknown names raise.
    """

    structure: ClassVar[str] = "diagonal"

    def diagonal(self, per: Per = "unit") -> dict[str, Tensor]:
        """The diagonal of the Fisher matrix.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Parameter name to a new tensor of the parameter's shape.
        """
        return self.means(per)

    def inner(self, other: Fisher) -> float:
        """Frobenius inner product of the two matrices, each a mean per unit.

        Args:
            other: A Fisher of the same parameters of the same model; its data, seed and
                number of draws may differ.

        Returns:
            The sum over parameters of the product of both diagonals.
        """
        self.identity.check(other.identity, ignore=COMPARABLE)
        products = (total(self.sums[n], other.sums[n]) for n in self.identity.parameters)
        return math.fsum(products) / self.denominator() / other.denominator()

    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        """The quadratic form of a displacement, mean per unit.

        Args:
            delta: Parameter name to displacement of the parameter's shape.

        Returns:
            The sum over parameters of ``F delta**2``.
        """
        check_vector(delta, self.identity.parameters)
        host = {name: tensor.detach().cpu() for name, tensor in delta.items()}
        squares = (total(self.sums[name], d, d) for name, d in host.items())
        return math.fsum(squares) / self.denominator()

    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product of the matrix, mean per unit, with a vector or a batch of them.

        Args:
            v: Parameter name to tensor of the parameter's shape, all of them with one
                leading dimension more for a batch.

        Returns:
            New CPU tensors under the names of ``v``; absent ones would be zero.
        """
        check_vector(v, self.identity.parameters, batch=True)
        denominator = self.denominator()
        return {
            name: self.sums[name] / denominator * tensor.detach().cpu()
            for name, tensor in v.items()
        }

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
        return {name: 1 / self._damped(name, damping) for name in self.identity.parameters}

    def logdet(self, *, damping: float) -> float:
        """The log-determinant of ``F + damping I`` with the mean per unit.

        Args:
            damping: Added to the diagonal; in the units of the diagonal.

        Returns:
            The sum of logarithms over all parameters, in nats.
        """
        return math.fsum(
            total(self._damped(name, damping), function=torch.log)
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

    def _damped(self, name: str, damping: float) -> Tensor:
        return damp(name, self.sums[name] / self.denominator(), damping)

    def _check_shapes(self) -> None:
        for name, shape in self.identity.parameters.items():
            if (held := tuple(self.sums[name].shape)) != shape:
                raise ParameterError(
                    f"sums[{name!r}] has shape {held}, but the parameter has {shape}."
                )
