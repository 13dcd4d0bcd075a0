"""The directions in parameter space with the largest Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fisherscope.analysis.access import require_diagonal
from fisherscope.arguments import check_whole
from fisherscope.results import Result
from fisherscope.structures import BlockLayout, BlockwiseFisher, Fisher
from fisherscope.structures.blocks import BlockMatrix, DiagonalBlock
from fisherscope.structures.factors import Factors


@dataclass(frozen=True, eq=False)
class TopDirections(Result):
    """The eigenvectors of a Fisher with the largest eigenvalues, made when asked for.

    Attributes:
        structure: Structure of the Fisher.
        k: Number of directions.
        n: Number of directions to choose from: parameters.
        mass: Share of the trace that their eigenvalues hold. Directions and mass come from the
            same data, so this is optimistic.
        frame: One row per direction, see :meth:`to_frame`.
        blocks: The Fisher's blocks, by their number.
    """

    structure: str
    k: int
    n: int
    mass: float
    frame: pd.DataFrame
    blocks: Sequence[BlockMatrix] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per direction, the largest eigenvalue first.

        Returns:
            Columns ``rank`` (from 1), ``eigenvalue`` (mean per unit), ``share`` of the trace,
            ``block`` (its parameters), ``kind`` of the block, ``number`` of the block, and
            ``index`` of the eigenvalue in the block's spectrum.
        """
        return self.frame.copy()

    def to_dict(self) -> dict[str, Any]:
        """The table and the numbers, without the directions.

        Returns:
            One entry per field but ``blocks``.
        """
        return {name: value for name, value in super().to_dict().items() if name != "blocks"}

    def direction(self, rank: int) -> dict[str, Tensor]:
        r"""One eigenvector; of a factored block it is an outer product.

        Args:
            rank: Its rank, from 1.

        Returns:
            Parameter name to float64 tensor of the parameter's shape, for the parameters of
            its block; zero elsewhere. Together of norm one, the entry of largest magnitude
            positive.

        Raises:
            ParameterError: If there is no such rank.
        """  # noqa: DOC502 (raised by callees)
        check_whole("rank", rank, low=1, most=self.k)
        row = self.frame.iloc[rank - 1]
        block = self.blocks[int(row["number"])]
        vector = block.eigenvector(int(row["index"]))
        flat = vector.reshape(-1)
        vector = vector / flat.norm() * flat[flat.abs().argmax()].sign()
        return block.view.split(vector)


def top_directions(fisher: Fisher, *, k: int = 10) -> TopDirections:
    r"""The directions along which a step changes the model's distribution most.

    These are the eigenvectors :math:`F v = \lambda v` with the largest eigenvalues, over all
    blocks of the Fisher together: a unit step along one costs :math:`\tfrac12 \lambda` nats
    per unit. Eigenvectors of Kronecker-factored blocks are outer products of those of the
    factors, of a diagonal they are coordinates; the whole matrix is never formed. Where
    eigenvalues coincide the directions are not unique; then the earlier block and the lower
    index in its spectrum come first.

    Args:
        fisher: Any Fisher but a grouped one.
        k: How many. Default: ``10``.

    Returns:
        Eigenvalues with their blocks; the directions are built by
        :meth:`TopDirections.direction`.

    Raises:
        ParameterError: If ``k`` is out of range or the Fisher is a grouped one.

    Source:
        Martens and Grosse (2015) for the spectrum of a Kronecker product, George et al. (2018)
        for that of EKFAC.
    """  # noqa: DOC502 (raised by callees)
    require_diagonal(fisher, "top_directions()")
    check_whole("k", k, low=1, most=fisher.n_parameters)
    blocks = _blocks(fisher)
    found: list[tuple[float, int, int]] = []
    for number, block in enumerate(blocks):
        spectrum = block.spectrum().double().reshape(-1).numpy()
        largest = np.argsort(-spectrum, kind="stable")[:k]
        found += [(float(spectrum[index]), number, int(index)) for index in largest]
    found = sorted(found, key=lambda pair: (-pair[0], *pair[1:]))[:k]
    denominator, trace = fisher.denominator(), fisher.trace()
    values = np.array([value for value, _, _ in found]) / denominator
    share = values / trace if trace > 0 else np.full(k, np.nan)
    layouts = [blocks[number].layout for _, number, _ in found]
    return TopDirections(
        structure=fisher.identity.structure,
        k=k,
        n=fisher.n_parameters,
        mass=float(share.sum()),
        frame=pd.DataFrame({
            "rank": np.arange(1, k + 1),
            "eigenvalue": values,
            "share": share,
            "block": [str(layout) for layout in layouts],
            "kind": [layout.kind for layout in layouts],
            "number": [number for _, number, _ in found],
            "index": [index for _, _, index in found],
        }),
        blocks=blocks,
    )


def _blocks(fisher: Fisher) -> Sequence[BlockMatrix]:
    if isinstance(fisher, BlockwiseFisher):
        return fisher.blocks
    shapes, factors = fisher.identity.parameters, Factors({})
    return [
        DiagonalBlock(BlockLayout("diagonal", (name,)), fisher.sums, shapes, factors)
        for name in shapes
    ]
