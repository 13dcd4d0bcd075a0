"""Fishers of different parameters over the same examples, put side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fisherscope.errors import IdentityError
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.identity import Identity
from fisherscope.structures.ledger import Ledger


def beside(parts: Sequence[Fisher], identity: Identity) -> Fisher:
    """One Fisher out of Fishers of disjoint sets of parameters.

    Args:
        parts: Over the same examples.
        identity: Of the whole, with all parameters.

    Returns:
        A Fisher of all parameters. The variance over draws of its total trace is not known
        from the parts: see :meth:`Fisher.standard_error`.

    Raises:
        IdentityError: If the parts are over different examples.
    """
    first = parts[0]
    if any(part.ledger.ids != first.ledger.ids for part in parts):
        raise IdentityError("the parts are over different examples; estimate them together.")
    names = list(identity.parameters)
    order = [name for part in parts for name in part.identity.parameters]
    columns = [order.index(name) for name in names]

    def joined(field: str) -> np.ndarray | None:
        tables = [getattr(part.ledger, field) for part in parts]
        if any(table is None for table in tables):
            return None
        return np.concatenate(tables, axis=1)[:, columns]

    squares = joined("squares")
    assert squares is not None
    ledger = Ledger(
        ids=first.ledger.ids,
        tensors=tuple(names),
        squares=squares,
        tokens=first.ledger.tokens,
        draw_variance=joined("draw_variance"),
        groups=first.ledger.groups,
    )
    blocks = {block.names[0]: block for part in parts for block in part.layout}
    return dataclasses.replace(
        first,
        identity=dataclasses.replace(identity, data_fingerprint=first.identity.data_fingerprint),
        sums={key: total for part in parts for key, total in part.sums.items()},
        ledger=ledger,
        coverage={name: text for part in parts for name, text in part.coverage.items()},
        layout=tuple(blocks[name] for name in names if name in blocks),
    )
