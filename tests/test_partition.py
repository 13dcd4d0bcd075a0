"""Parts of the parameters under a memory limit."""

from __future__ import annotations

import pytest

import fisherscope as fs
from fisherscope.defaults import FisherConfig
from fisherscope.partition import Budget, sums_bytes
from fisherscope.preparation import prepare
from oracles import models, rows


# Planted: room used by earlier parts counted in later ones (then every block is a part of its
# own), weights that share the factor of their input put in different parts. Would catch: a
# parameter left out, twice, or out of order.
@pytest.mark.parametrize(
    ("structure", "limits"), [("diagonal", (3000, 9000)), ("kfac", (9600, 12_000, 16_000))]
)
def test_parts_are_full_and_blocks_stay_together(structure, limits):
    case = models.case("llama-untied")
    data = rows.examples(case.rows)
    layout = fs.estimate(case.model, data, structure=structure, progress=False).layout
    prepared = prepare(case.model, data, FisherConfig(structure=structure))
    sizes = sums_bytes(prepared)
    for limit in limits:
        parts = Budget(limit).parts(prepared)
        of = {name: n for n, part in enumerate(parts) for name in part}
        assert sorted(name for part in parts for name in part) == sorted(prepared.parameters)
        used = [0] * len(parts)
        for names, size in sizes.items():
            used[of[names[0]]] += size
        assert max(used) <= limit
        for before, part in zip(used, parts[1:], strict=False):
            first = next(size for names, size in sizes.items() if names[0] == part[0])
            assert before + first > limit
        for block in layout:
            together = {*block.names, block.inputs} & set(of)
            assert len({of[name] for name in together}) == 1, together
