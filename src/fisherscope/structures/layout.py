"""Which parameters form the blocks of a Fisher, and how each block is kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from fisherscope.errors import IdentityError, ParameterError

Kind = Literal["diagonal", "kronecker", "eigen", "dense"]


@dataclass(frozen=True)
class BlockLayout:
    r"""One block of a block-diagonal Fisher.

    The kinds and the keys of ``sums`` that they read:

    ``"diagonal"``
        ``name``: sum of squares, in the parameter's shape.
    ``"kronecker"``
        ``{names[0]}:gradients.{i}`` and ``{inputs}:inputs.{i}``: diagonal blocks of
        :math:`G = \sum g g^T` and :math:`A = \sum a a^T`; ``{inputs}:rows``: the number
        :math:`R` of rows summed into A, a float64 scalar. The block is
        :math:`G \otimes A / R`, with :math:`(G \otimes A) \mathrm{vec} M =
        \mathrm{vec}(G M A)` for the matrix view M.
    ``"eigen"``
        The same keys without ``rows`` hold eigenvectors (columns), and
        ``{names[0]}:eigenvalues`` the eigenvalues :math:`\Lambda` in the shape of M: the
        block is :math:`Q \,\mathrm{diag}(\mathrm{vec} \Lambda) Q^T`,
        :math:`Q = Q_G \otimes Q_A`.
    ``"dense"``
        ``{names[0]}:matrix``: the matrix over the parameters, flattened row-major in the
        order of ``names``.

    The matrix view M is ``weight.reshape(out, -1)``, first and second dimension swapped
    before if ``outputs_second``; a joint bias is its last column (and 1 the last entry of
    a). A factor is kept as several diagonal blocks in the dimension's order if it would be
    too wide otherwise.

    Attributes:
        kind: How the block is kept.
        names: Parameters in the block; for ``"kronecker"`` and ``"eigen"`` the weight, or
            weight and bias.
        outputs_second: Whether the weight is stored as ``[in, out]``, as in HF ``Conv1D``.
            Default: ``False``.
        inputs: Weight whose input factor the block uses; layers that read the same
            activations share one. Default: the block's own weight.
    """

    kind: Kind
    names: tuple[str, ...]
    outputs_second: bool = False
    inputs: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in get_args(Kind):
            raise ParameterError(
                f"kind={self.kind!r} of the block {self} is unknown; use one of "
                f"{list(get_args(Kind))}."
            )
        if len(self.names) == 0 or len(set(self.names)) != len(self.names):
            raise ParameterError(f"a block names its parameters once each, not {self.names}.")
        if not self.factored:
            if self.outputs_second or self.inputs:
                raise ParameterError(
                    f"outputs_second and inputs mean nothing for the {self.kind} block {self}."
                )
        elif len(self.names) > 2:
            raise ParameterError(
                f"a {self.kind} block holds a weight, or a weight and its bias, not {self.names}."
            )
        elif not self.inputs:
            object.__setattr__(self, "inputs", self.names[0])

    @property
    def factored(self) -> bool:
        """Whether the block has a factor of outputs and a factor of inputs."""
        return self.kind in {"kronecker", "eigen"}

    def __str__(self) -> str:
        return " + ".join(self.names)

    def to_json(self) -> dict[str, Any]:
        """The block in values that ``json.dumps`` takes.

        Returns:
            One entry per field.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild a block from :meth:`to_json`.

        Args:
            fields: What :meth:`to_json` returned.

        Returns:
            An equal block.
        """
        return cls(**fields)


def check_partition(layout: Sequence[BlockLayout], parameters: Sequence[str]) -> None:
    """Make sure that every parameter is in one block.

    Args:
        layout: The blocks.
        parameters: Names of all parameters.

    Raises:
        ParameterError: If one is in none or in several, or if a block has others.
    """
    held = Counter(name for block in layout for name in block.names)
    wrong = [name for name in {**held, **dict.fromkeys(parameters)} if held[name] != 1]
    wrong += [name for name in held if name not in parameters]
    if wrong:
        raise ParameterError(
            "layout and identity.parameters don't fit: each parameter belongs to one block, but "
            + ", ".join(f"{name!r} to {held[name]}" for name in wrong[:5])
            + "."
        )


def check_same(
    mine: Sequence[BlockLayout], theirs: Sequence[BlockLayout], what: str = "added"
) -> None:
    """Make sure that two Fishers have the same blocks.

    Args:
        mine: Blocks of one.
        theirs: Blocks of the other.
        what: What can't be done otherwise, for the message. Default: ``"added"``.

    Raises:
        IdentityError: If they differ; the message names the first block that does.
    """
    for number in range(max(len(mine), len(theirs))):
        pair = [repr(blocks[number]) if number < len(blocks) else "absent"
                for blocks in (mine, theirs)]  # fmt: skip
        if pair[0] != pair[1]:
            raise IdentityError(
                f"the two Fishers can't be {what}: block {number} is {pair[0]} and {pair[1]}. "
                "Estimate both with the same structure on the same model."
            )
