"""What an estimate is of: the fields that must agree before two are combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from fisherscope.errors import IdentityError

_MODULUS = 2**128
_SHOWN = 5


@dataclass(frozen=True)
class Identity:
    """Everything that decides whether two estimates mean the same thing.

    Attributes:
        fisher_type: Where labels came from, ``"empirical"``, ``"mc"`` or ``"type-2"``.
        unit: What counts as one observation: ``"example"``, ``"token"``, ``"position"`` or
            ``"batch"``.
        structure: How much of the matrix is kept: the canonical text of a spec, for instance
            ``"diagonal"`` or ``"kfac(sharing=reduce)"``.
        likelihood: Name of the likelihood, for instance ``"causal-lm"``.
        draws: Label draws per example; matters for ``"mc"`` only.
        seed: Seed that keys the sampled labels.
        parameters: Names and shapes of the requested parameters in the model's order;
            tied tensors once, under their first name.
        model_fingerprint: Hash of the model's weights.
        data_fingerprint: Hexadecimal sum of the examples' 128-bit hashes modulo 2**128,
            so the fingerprint of a union of disjoint data is the sum of fingerprints.
        dtype: Floating-point type of the model's parameters.
        version: Version of the library that computed the scores.
        sampling: What a draw is, ``"labels"`` or ``"signs"``; matters for ``"mc"`` only.
    """

    fisher_type: str
    unit: str
    structure: str
    likelihood: str
    draws: int
    seed: int
    parameters: dict[str, tuple[int, ...]]
    model_fingerprint: str
    data_fingerprint: str
    dtype: str
    version: str
    sampling: str = "labels"

    def check(
        self, other: Identity, *, ignore: Collection[str] = ("data_fingerprint", "version")
    ) -> None:
        """Make sure that two estimates may be combined or compared.

        Args:
            other: The identity of the other estimate.
            ignore: Fields that may differ. Default: ``("data_fingerprint", "version")``.

        Raises:
            IdentityError: If another field differs; the message names each such field
                with both values.
        """
        differing = [
            _difference(f.name, getattr(self, f.name), getattr(other, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ignore and getattr(self, f.name) != getattr(other, f.name)
        ]
        if differing:
            raise IdentityError(
                "these two Fishers are of different things: "
                + "; ".join(differing)
                + ". Estimate both with the same settings on the same model."
            )

    def __add__(self, other: Identity) -> Identity:
        """The identity of two estimates together.

        Args:
            other: An identity that differs in data and library version at most.

        Returns:
            The common identity with the data fingerprints added modulo 2**128; versions
            that differ are both named. If any other field differs, :meth:`check` raises.
        """
        self.check(other)
        data = (int(self.data_fingerprint, 16) + int(other.data_fingerprint, 16)) % _MODULUS
        versions = {*self.version.split(","), *other.version.split(",")}
        return dataclasses.replace(
            self, data_fingerprint=f"{data:032x}", version=",".join(sorted(versions))
        )

    def to_json(self) -> dict[str, Any]:
        """The identity in values that ``json.dumps`` takes.

        Returns:
            One entry per field; parameters as a list of ``[name, shape]`` pairs, because
            their order carries meaning.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["parameters"] = [[name, list(shape)] for name, shape in self.parameters.items()]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Rebuild an identity from :meth:`to_json`.

        Args:
            fields: What :meth:`to_json` returned.

        Returns:
            An equal identity.

        Raises:
            TypeError: If a field is of another type.
        """
        parameters = {name: tuple(shape) for name, shape in fields["parameters"]}
        found = cls(**{**fields, "parameters": parameters})
        texts = [getattr(found, f.name) for f in dataclasses.fields(cls) if f.type == "str"]
        counts = [found.draws, *(size for shape in parameters.values() for size in shape)]
        if not all(isinstance(text, str) for text in (*texts, *parameters)):
            raise TypeError("a field that is text holds something else")
        if not all(type(count) is int and count >= 0 for count in counts) or found.draws < 1:
            raise TypeError("draws and shapes are not positive integers")
        if type(found.seed) is not int or not 0 <= int(found.data_fingerprint, 16) < _MODULUS:
            raise TypeError("seed or data_fingerprint is not a number")
        return found


def _difference(field: str, mine: Any, theirs: Any) -> str:
    # A model has hundreds of parameters: only those that differ are worth reading.
    if field != "parameters":
        return f"{field} is {mine!r} and {theirs!r}"
    names = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]
    shown = ", ".join(
        f"{name!r} is {mine.get(name, 'absent')} and {theirs.get(name, 'absent')}"
        for name in names[:_SHOWN]
    )
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"parameters differ: {shown}{rest}"
