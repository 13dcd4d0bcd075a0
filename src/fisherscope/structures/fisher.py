"""The Fisher object: sums, counts and a ledger, divided only when read."""

from __future__ import annotations

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from fisherscope.errors import DataError, IdentityError, ParameterError
from fisherscope.specs import Spec, base_name, parse
from fisherscope.structures import intervals, operator
from fisherscope.structures.identity import Identity
from fisherscope.structures.layout import BlockLayout
from fisherscope.structures.ledger import Ledger, check_disjoint
from fisherscope.structures.rooms import Room, added, memory
from fisherscope.structures.vectors import total

Per = Literal["unit", "example", "token", "sum"]
Source = Literal["examples", "draws"]


@dataclass(frozen=True, eq=False)
class Fisher(ABC):
    """Sums of squared scores over examples, with what is needed to read and combine them.

    Never built by hand in normal use: :func:`fisherscope.estimate` makes one, ``+`` joins
    two over disjoint examples, :func:`fisherscope.load` reads one.

    Attributes:
        identity: What the sums are of.
        sums: CPU tensors (float32 or float64): the structure's numbers, summed over examples,
            units and draws; by parameter name, or under the keys of :class:`BlockLayout`.
        ledger: Squared score norms per example and tensor.
        coverage: Parameter name to the rule that produced it.
        n_units: Number of units summed over, draws not counted.
        halves: Two Fishers over disjoint halves of the same examples, or ``None``.
        skipped: Ids of examples left out because their scores were not finite.
        layout: The blocks of a block structure, ``()`` for others.
    """

    structure: ClassVar[str] = ""
    _registry: ClassVar[dict[str, type[Fisher]]] = {}

    identity: Identity
    sums: dict[str, Tensor]
    ledger: Ledger
    coverage: dict[str, str]
    n_units: int
    halves: tuple[Self, Self] | None = None
    skipped: tuple[str, ...] = ()
    layout: tuple[BlockLayout, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.structure:
            Fisher._registry[cls.structure] = cls

    def __post_init__(self) -> None:
        structure = parse(self.identity.structure)
        if structure.name != self.structure or str(structure) != self.identity.structure:
            raise IdentityError(
                f"identity.structure is {self.identity.structure!r}, but {type(self).__name__} "
                f"holds {self.structure!r} (canonical text, as str(spec) gives it)."
            )
        expected = self._keys()
        if set(self.sums) != set(expected):
            raise ParameterError(
                "sums and identity.parameters name different tensors: "
                f"{sorted(set(self.sums) ^ set(expected))[:5]}."
            )
        if list(self.ledger.tensors) != list(self.identity.parameters):
            raise ParameterError(
                "ledger.tensors must be the names of identity.parameters in the same order."
            )
        for key, tensor in self.sums.items():
            if tensor.dtype not in {torch.float32, torch.float64} or tensor.device.type != "cpu":
                raise ParameterError(
                    f"sums[{key!r}] is {tensor.dtype} on {tensor.device}; keep sums in float32 "
                    "or float64 on the CPU."
                )
        self._check_shapes()

    @staticmethod
    def of_structure(structure: str | Spec) -> type[Fisher]:
        """The class that holds a structure.

        Args:
            structure: A spec or its text, for instance ``"diagonal"``; options don't matter.

        Returns:
            The subclass of :class:`Fisher`.

        Raises:
            ParameterError: If there is no such structure.
        """
        try:
            return Fisher._registry[base_name(structure)]
        except KeyError:
            raise ParameterError(
                f"unknown structure {str(structure)!r}; known: {sorted(Fisher._registry)}."
            ) from None

    @property
    def n_examples(self) -> int:
        """Number of examples summed over, skipped ones not counted."""
        return len(self.ledger)

    @property
    def n_tokens(self) -> int:
        """Number of supervised tokens summed over."""
        return int(self.ledger.tokens.sum())

    @property
    def draws(self) -> int:
        """Label draws per example: 1 unless labels were drawn from the model."""
        return self.identity.draws if self.identity.fisher_type == "mc" else 1

    @property
    def n_parameters(self) -> int:
        """Number of parameters (elements of all tensors) that the estimate covers."""
        return sum(math.prod(shape) for shape in self.identity.parameters.values())

    def denominator(self, per: Per = "unit") -> int:
        """What the sums are divided by when read.

        Args:
            per: ``"unit"``, ``"example"`` or ``"token"`` for the mean per one of those,
                ``"sum"`` for the sum over all examples. Default: ``"unit"``.

        Returns:
            The count, times the number of draws.

        Raises:
            ParameterError: If ``per`` is none of these.
            DataError: If the count is zero, so that there is no mean.
        """
        counts = {
            "unit": self.n_units,
            "example": self.n_examples,
            "token": self.n_tokens,
            "sum": 1,
        }
        if per not in counts:
            raise ParameterError(f"per={per!r} is unknown; use one of {list(get_args(Per))}.")
        if not counts[per]:
            raise DataError(
                f"no {per} was summed over, so there is no mean per {per}"
                + (f"; {len(self.skipped)} examples were skipped." if self.skipped else ".")
            )
        return counts[per] * self.draws

    def means(self, per: Per = "unit") -> dict[str, Tensor]:
        """The structure's numbers, divided.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            New tensors of the shapes and types of ``sums``.
        """
        denominator = self.denominator(per)
        return {name: self.sums[name] / denominator for name in self.identity.parameters}

    @abstractmethod
    def diagonal(self, per: Per = "unit") -> dict[str, Tensor]:
        """The diagonal of the Fisher matrix, one tensor of each parameter's shape."""

    @abstractmethod
    def inner(self, other: Fisher) -> float:
        """Frobenius inner product of the two matrices, each a mean per unit."""

    @abstractmethod
    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        """The quadratic form ``delta^T F delta`` with the mean per unit."""

    @abstractmethod
    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product ``F v`` with the mean per unit."""

    @abstractmethod
    def solve(
        self, v: Mapping[str, Tensor], *, damping: float, power: float = 1.0
    ) -> dict[str, Tensor]:
        """The solution ``x`` of ``(F + damping I)^power x = v`` with the mean per unit."""

    @abstractmethod
    def inverse_diagonal(self, *, damping: float) -> dict[str, Tensor]:
        """The diagonal of the inverse of ``F + damping I`` with the mean per unit."""

    @abstractmethod
    def logdet(self, *, damping: float) -> float:
        """The log-determinant of ``F + damping I`` with the mean per unit, in nats."""

    @abstractmethod
    def sample(self, n: int = 1, *, damping: float, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the normal distribution with precision ``F + damping I``."""

    def dense(self) -> Tensor:
        """The whole matrix, mean per unit; for small models.

        Returns:
            float64 ``[p, p]``, parameters flattened row-major in the order of
            ``identity.parameters``. Too many of them raise :class:`ParameterError`.
        """
        return operator.matrix(self.matvec, self.identity.parameters, self.n_parameters)

    def to_scipy(self) -> LinearOperator:
        """The matrix, mean per unit, as an operator for scipy's solvers.

        Returns:
            A float64 ``scipy.sparse.linalg.LinearOperator`` over the flattened parameters, in
            the order of :meth:`dense`; it multiplies through :meth:`matvec`.
        """
        return operator.FisherOperator(self.matvec, self.identity.parameters, self.n_parameters)

    def traces(self, per: Per = "unit") -> dict[str, float]:
        """The trace of each parameter tensor's block.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Parameter name to trace.
        """
        denominator = self.denominator(per)
        return {name: total(self.sums[name]) / denominator for name in self.identity.parameters}

    def trace(self, per: Per = "unit") -> float:
        """The trace of the Fisher matrix: the mean squared score norm.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.

        Returns:
            The sum over all tensors.
        """
        return math.fsum(self.traces(per).values())

    def standard_error(self, per: Per = "unit", source: Source = "examples") -> dict[str, float]:
        r"""Standard error of each tensor's trace, from the ledger.

        With ``source="examples"`` the examples are taken as independent draws from their
        distribution. A mean per example has the usual standard error; a mean per token is
        a ratio :math:`R = \sum_n x_n / \sum_n m_n` of two random sums, for which the delta
        method gives :math:`\mathrm{SE}^2 = \frac{N}{N-1} \sum_n (x_n - R m_n)^2 /
        (\sum_n m_n)^2`. With ``"mc"`` labels it contains the noise of the labels as well.

        With ``source="draws"`` the examples are taken as fixed and only the drawn labels as
        random: how far the estimate is from the same examples with infinitely many draws.

        Args:
            per: See :meth:`denominator`. Default: ``"unit"``.
            source: ``"examples"`` or ``"draws"``. Default: ``"examples"``.

        Returns:
            Parameter name to standard error, and under ``""`` that of the total trace. With
            fewer than two examples ``"examples"`` gives NaN. For ``"draws"`` the total is
            an upper bound (perfectly correlated tensors) if the ledger has no
            ``draw_variance_total``.

        Raises:
            ParameterError: If ``source`` is unknown. Also if it is ``"draws"`` and the ledger
                holds no variance over draws.
        """
        if source == "examples":
            errors = intervals.over_examples(self.ledger, *self._weights(per))
        elif source == "draws":
            count = self.denominator(per) / self.draws
            errors = intervals.over_draws(self.ledger, self.draws) / count
        else:
            raise ParameterError(
                f"source={source!r} is unknown; use one of {list(get_args(Source))}."
            )
        return dict(zip((*self.ledger.tensors, ""), errors.tolist(), strict=True))

    def bootstrap(
        self,
        statistic: Callable[[np.ndarray], Any],
        n: int = 1000,
        seed: int = 0,
        *,
        per: Per = "unit",
    ) -> np.ndarray:
        """Distribution of a statistic of the tensors' traces over resampled examples.

        Args:
            statistic: Takes a float64 array ``[P]`` of traces, in the order of
                ``ledger.tensors``, and returns a number or an array of fixed shape.
            n: Number of resamples. Default: ``1000``.
            seed: Seed of the resampling; two Fishers over the same examples are resampled
                alike under one seed. Default: ``0``.
            per: What the traces are per, see :meth:`denominator`. Default: ``"unit"``.

        Returns:
            Array of ``n`` values of the statistic along its first axis.
        """
        return intervals.bootstrap(
            self.ledger, *self._weights(per), statistic=statistic, n=n, seed=seed
        )

    def __add__(self, other: Self) -> Self:
        """The estimate over the examples of both: :meth:`plus` in memory."""
        return self.plus(other)

    def plus(self, other: Self, room: Room = memory) -> Self:
        """The estimate over the examples of both, exact because only sums are kept.

        Args:
            other: An estimate of the same thing over other examples.
            room: Where the sums are put. Default: in memory.

        Returns:
            A new Fisher; its halves are the sums of the summands' halves when both have
            halves, otherwise ``None``.

        Raises:
            ParameterError: If ``other`` is not a Fisher. If the identities differ in more
                than the data, the blocks or their eigenvectors differ, or an example occurs
                in both (also among the skipped), :class:`IdentityError` names the fields,
                the block or some of the ids.
        """
        if not isinstance(other, Fisher):
            raise ParameterError(f"a Fisher can be added to a Fisher, not to {type(other)}.")
        books = self.books(other)
        halves = None
        if self.halves is not None and other.halves is not None:
            mine, theirs = self.halves, other.halves
            halves = (mine[0].plus(theirs[0], room), mine[1].plus(theirs[1], room))
        sums = self._added(other, room)
        return type(self)(sums=sums, halves=halves, layout=self.layout, **books)

    def books(self, other: Self) -> dict[str, Any]:
        """All of ``self + other`` but the numbers that are added up.

        Args:
            other: As for :meth:`plus`, with the same errors about identities and examples.

        Returns:
            Fields by name: identity, ledger, coverage, number of units, what was skipped.
        """
        identity = self.identity + other.identity
        check_disjoint(self.ledger.ids + self.skipped, other.ledger.ids + other.skipped)
        return {
            "identity": identity,
            "ledger": self.ledger + other.ledger,
            "coverage": {
                name: _both(self.coverage.get(name, ""), other.coverage.get(name, ""))
                for name in identity.parameters
            },
            "n_units": self.n_units + other.n_units,
            "skipped": tuple(sorted(self.skipped + other.skipped)),
        }

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write this Fisher to a folder of safetensors and JSON.

        Args:
            path: The folder; a Fisher already there is replaced once this one is complete.
                :class:`StoreError` if it can't be written or holds something else.
            dtype: ``torch.bfloat16`` halves the size of a diagonal or grouped Fisher: each sum is
                rounded to within 0.4%, and read as fp32 again. Default: ``None``, the sums' own.
                Any other type or structure raises :class:`ParameterError`.
        """
        # The file format builds on this class, so the import can't be at the top.
        from fisherscope.structures.io import save

        save(self, path, dtype=dtype)

    def to_frame(self) -> pd.DataFrame:
        """One row per parameter tensor.

        Returns:
            Columns ``tensor``, ``n_parameters``, ``trace`` (mean per unit), ``se`` (its
            standard error over examples), ``mean`` (trace per parameter), ``log10_mean``,
            ``relative_se`` and ``rule``.
        """
        shapes = self.identity.parameters
        errors = self.standard_error()
        frame = pd.DataFrame({
            "tensor": list(shapes),
            "n_parameters": [math.prod(shape) for shape in shapes.values()],
            "trace": list(self.traces().values()),
            "se": [errors[name] for name in shapes],
        })
        frame["mean"] = frame["trace"] / frame["n_parameters"]
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["log10_mean"] = np.log10(frame["mean"])
            frame["relative_se"] = frame["se"] / frame["trace"]
        frame["rule"] = [self.coverage.get(name, "") for name in shapes]
        return frame

    def __repr__(self) -> str:
        identity = self.identity
        return (
            f"{type(self).__name__}({identity.fisher_type}, per {identity.unit}, "
            f"{len(identity.parameters)} tensors, {self.n_parameters} parameters, "
            f"{self.n_examples} examples, {self.n_tokens} tokens)"
        )

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(max_rows=30, escape=True, index=False)
        return f"<p>{html.escape(repr(self))}</p>{table}"

    # What a structure keeps: the keys of its sums, their shapes, and how two of it add up.
    def _keys(self) -> list[str]:
        if self.layout:
            raise ParameterError(
                f"{type(self).__name__} has no blocks, but layout has {len(self.layout)}."
            )
        return list(self.identity.parameters)

    @abstractmethod
    def _check_shapes(self) -> None: ...

    def _added(self, other: Fisher, room: Room) -> dict[str, Tensor]:
        for key in self.sums:
            mine, theirs = tuple(self.sums[key].shape), tuple(other.sums[key].shape)
            if mine != theirs:
                raise IdentityError(
                    f"the two Fishers can't be added: {key!r} is grouped as {mine} and {theirs}. "
                    "Estimate both with the same groups."
                )
        return {key: added(self.sums[key], other.sums[key], room) for key in self._keys()}

    # Denominators m of the examples and a factor: a trace is factor * sum(x) / sum(m).
    def _weights(self, per: Per) -> tuple[np.ndarray, float]:
        self.denominator(per)
        by_token = per == "token" or (per == "unit" and self.identity.unit != "example")
        if not by_token:
            factor = self.n_examples if per == "sum" else 1.0
            return np.ones(self.n_examples), float(factor)
        factor = self.n_tokens / self.n_units if per == "unit" else 1.0
        return self.ledger.tokens.astype(np.float64), factor


def _both(mine: str, theirs: str) -> str:
    # Sorted, so that the text is the same whichever summand comes first.
    return mine if mine == theirs else " + ".join(sorted({mine, theirs}))
