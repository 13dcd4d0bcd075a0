"""Block-diagonal Fishers: one loop over blocks of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Self, TypeVar, cast

import torch
from torch import Tensor

from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures.blocks import BlockMatrix
from fisherscope.structures.diagonal import COMPARABLE
from fisherscope.structures.factors import Factors
from fisherscope.structures.fisher import Fisher, Per
from fisherscope.structures.layout import Kind, check_partition, check_same
from fisherscope.structures.rooms import Room, added
from fisherscope.structures.vectors import check_damping, check_power, check_vector, sampler, total

T = TypeVar("T")


class BlockwiseFisher(Fisher):
    """A Fisher matrix that is zero between the blocks of ``layout``.

    Every operation runs block by block in float64 (diagonal blocks: in the type of their
    sums) and returns the type that the sums and the vector promote to. Vectors in parameter
    space are mappings from parameter name to tensor; absent parameters count as zero,
    unknown names raise; results have every parameter of the blocks that the vector touches.
    Eigendecompositions are made when first needed and kept with the object, in float64;
    don't change its sums after that.

    Attributes:
        kinds: Kinds of blocks that the structure may have.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset()

    @cached_property
    def blocks(self) -> tuple[BlockMatrix, ...]:
        """The blocks of ``layout``, as sums over examples and draws."""
        factors, parameters = Factors(self.sums), self.identity.parameters
        return tuple(
            BlockMatrix.registry[block.kind](block, self.sums, parameters, factors)
            for block in self.layout
        )

    def means(self, per: Per = "unit") -> dict[str, Tensor]:
        """The structure's numbers as means.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            New tensors under the keys of ``sums``, without the numbers of rows: diagonals,
            matrices, factors of gradients and eigenvalues per unit, factors of inputs per
            row, eigenvectors as they are.
        """
        denominator = self.denominator(per)
        return {k: t for block in self.blocks for k, t in block.means(denominator).items()}

    def diagonal(self, per: Per = "unit") -> dict[str, Tensor]:
        """The diagonal of the Fisher matrix.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Parameter name to a new tensor of the parameter's shape.
        """
        denominator = self.denominator(per)
        return self._ordered({
            name: tensor.to(block.dtype)
            for block in self.blocks
            for name, tensor in block.view.split(block.diagonal() / denominator).items()
        })

    def traces(self, per: Per = "unit") -> dict[str, float]:
        """The sum of each parameter's part of the diagonal.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Parameter name to trace.
        """
        denominator = self.denominator(per)
        return self._ordered({
            name: total(tensor) / denominator
            for block in self.blocks
            for name, tensor in block.view.split(block.diagonal()).items()
        })

    def eigenvalues(self, per: Per = "unit") -> Tensor:
        """The spectrum of the whole matrix.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            float64 vector with one eigenvalue per parameter, ascending.
        """
        denominator = self.denominator(per)
        values = [block.spectrum().double().reshape(-1) for block in self.blocks]
        return torch.cat(values).sort().values / denominator

    def inner(self, other: Fisher) -> float:
        """Frobenius inner product of the two matrices, each a mean per unit.

        Args:
            other: A Fisher of the same structure and blocks of the same model; its data,
                seed and number of draws may differ, and so may eigenvectors. Otherwise
                :class:`IdentityError` says what differs.

        Returns:
            The sum over blocks.
        """
        theirs = self.alike(other, "compared").blocks
        products = (a.inner(b) for a, b in zip(self.blocks, theirs, strict=True))
        return math.fsum(products) / self.denominator() / other.denominator()

    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        """The quadratic form of a displacement, mean per unit.

        Args:
            delta: Parameter name to displacement of the parameter's shape.

        Returns:
            ``delta^T F delta``.
        """
        check_vector(delta, self.identity.parameters)
        parts = (total(x, block.multiply(x)) for block, x in self._joined(delta))
        return math.fsum(parts) / self.denominator()

    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product of the matrix, mean per unit, with a vector or a batch of them.

        Args:
            v: Parameter name to tensor of the parameter's shape, all of them with one
                leading dimension more for a batch.

        Returns:
            New CPU tensors under all names of the blocks that ``v`` has names of.
        """
        denominator = self.denominator()
        return self._split([
            (block, x.dtype, block.multiply(x) / denominator) for block, x in self._joined(v)
        ])

    def solve(
        self, v: Mapping[str, Tensor], *, damping: float, power: float = 1.0
    ) -> dict[str, Tensor]:
        """Solve ``(F + damping I)^power x = v`` with the mean per unit, exactly.

        Args:
            v: As for :meth:`matvec`.
            damping: Added to the diagonal; in the units of the diagonal. 0 is fine if no
                eigenvalue is zero up to rounding, otherwise :class:`ParameterError` says
                how many are.
            power: Power of the matrix, at least 0. Default: 1.

        Returns:
            New CPU tensors under all names of the blocks that ``v`` has names of.
        """
        check_power(power)
        solved = []
        for block, x in self._joined(v):
            damped = self._damped(block, damping).pow(power)
            solved.append((block, x.dtype, block.unrotate(block.rotate(x) / damped)))
        return self._split(solved)

    def inverse_diagonal(self, *, damping: float) -> dict[str, Tensor]:
        """The diagonal of ``(F + damping I)^-1`` with the mean per unit.

        Args:
            damping: As for :meth:`solve`.

        Returns:
            Every parameter's name to a new tensor of its shape.
        """
        return self._ordered({
            name: tensor.to(block.dtype)
            for block in self.blocks
            for name, tensor in block.view.split(
                block.spread(1 / self._damped(block, damping))
            ).items()
        })

    def logdet(self, *, damping: float) -> float:
        """The log-determinant of ``F + damping I`` with the mean per unit.

        Args:
            damping: As for :meth:`solve`.

        Returns:
            The sum of logarithms of the eigenvalues, in nats.
        """
        return math.fsum(
            total(self._damped(block, damping), function=torch.log) for block in self.blocks
        )

    def sample(self, n: int = 1, *, damping: float, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the normal distribution with precision ``F + damping I``.

        Args:
            n: Number of independent vectors. Default: 1.
            damping: As for :meth:`solve`.
            seed: Seed; equal seeds give equal vectors. Default: 0.

        Returns:
            Parameter name to tensor ``[n, *shape]`` of the type of the sums, with mean 0 and
            covariance ``(F + damping I)^-1``.
        """
        generator = sampler(n, seed)
        drawn: dict[str, Tensor] = {}
        for block in self.blocks:
            noise = block.noise(n, generator) / self._damped(block, damping).double().sqrt()
            for name, tensor in block.view.split(block.unrotate(noise)).items():
                drawn[name] = tensor.to(block.dtype)
        return self._ordered(drawn)

    def alike(self, other: Fisher, what: str, *, ignore: Sequence[str] = COMPARABLE) -> Self:
        """Make sure that another Fisher has the same blocks.

        Args:
            other: A Fisher.
            what: What can't be done otherwise, for the message.
            ignore: Fields of the identity that may differ. Default: those of the data, the seed,
                the number of draws and the version.

        Returns:
            The other one.

        Raises:
            IdentityError: If the identities differ in more, or the blocks do.
        """
        self.identity.check(other.identity, ignore=ignore)
        check_same(self.layout, other.layout, what)
        # Equal structures are of equal classes.
        alike = cast(Self, other)
        for mine, theirs in zip(self.blocks, alike.blocks, strict=True):
            keys = mine.keys(mine.layout, self.sums)
            if [(k, self.sums[k].shape) for k in keys] != [
                (k, alike.sums[k].shape) for k in theirs.keys(theirs.layout, alike.sums)
            ]:
                raise IdentityError(
                    f"the two Fishers can't be {what}: the factors of the block {mine.layout} are "
                    "cut into different pieces. Estimate both with the same widest=."
                )
        return alike

    # Blocks that a vector touches, with the vector in their view.
    def _joined(self, v: Mapping[str, Tensor]) -> Iterator[tuple[BlockMatrix, Tensor]]:
        lead = check_vector(v, self.identity.parameters, batch=True)
        host = {name: tensor.detach().cpu() for name, tensor in v.items()}
        for block in self.blocks:
            shapes = block.view.shapes
            if given := [host[name].dtype for name in shapes if name in host]:
                dtype = block.dtype
                for other in given:
                    dtype = torch.promote_types(dtype, other)
                filled = {
                    name: host[name].to(dtype) if name in host
                    else torch.zeros((*lead, *shape), dtype=dtype)
                    for name, shape in shapes.items()
                }  # fmt: skip
                yield block, block.view.join(filled)

    def _split(self, found: list[tuple[BlockMatrix, torch.dtype, Tensor]]) -> dict[str, Tensor]:
        return self._ordered({
            name: tensor.to(dtype)
            for block, dtype, result in found
            for name, tensor in block.view.split(result).items()
        })

    def _damped(self, block: BlockMatrix, damping: float) -> Tensor:
        check_damping(damping)
        if damping == 0 and (null := block.nullity()):
            raise ParameterError(
                f"the Fisher is singular: {null} of {math.prod(block.view.shape)} eigenvalues of "
                f"the block {block.layout} are zero up to rounding. Pass a larger damping (a small "
                "fraction of the diagonal's mean is usual)."
            )
        return block.spectrum() / self.denominator() + damping

    def _ordered(self, found: Mapping[str, T]) -> dict[str, T]:
        return {name: found[name] for name in self.identity.parameters if name in found}

    def _added(self, other: Fisher, room: Room) -> dict[str, Tensor]:
        self.alike(other, "added")
        sums = {}
        for block in self.blocks:
            basis = block.basis_keys(block.layout, self.sums)
            for key in block.keys(block.layout, self.sums):
                mine, theirs = self.sums[key], other.sums[key]
                if key not in basis:
                    sums[key] = added(mine, theirs, room)
                elif mine.dtype == theirs.dtype and torch.equal(mine, theirs):
                    sums[key] = mine
                else:
                    raise IdentityError(
                        f"the two Fishers can't be added: their eigenvectors {key!r} differ, and "
                        "eigenvalues in different bases don't add up. Estimate both in one basis: "
                        "pass basis=, the KFAC that one of them was made from."
                    )
        return sums

    def _keys(self) -> list[str]:
        if wrong := [block for block in self.layout if block.kind not in self.kinds]:
            raise ParameterError(
                f"{type(self).__name__} has blocks of the kinds {sorted(self.kinds)}, not the "
                f"{wrong[0].kind} block {wrong[0]}."
            )
        check_partition(self.layout, list(self.identity.parameters))
        kinds = BlockMatrix.registry
        keys = [k for block in self.layout for k in kinds[block.kind].keys(block, self.sums)]
        return list(dict.fromkeys(keys))

    def _check_shapes(self) -> None:
        for block in self.layout:
            kind = BlockMatrix.registry[block.kind]
            kind.check(block, self.sums, self.identity.parameters)
