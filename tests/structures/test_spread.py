"""Sums that are spread over ranks: added up and written by their owners, read as one Fisher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fisherscope as fs
from fisherscope.structures.spread import Owners
from oracles import models, rows
from oracles.comparison import KINDS, MC, close, plain
from oracles.processes import ranks, split, values
from oracles.runs import estimate

SPREAD: dict[str, dict[str, Any]] = {
    "diagonal": {"structure": "diagonal"},
    "kfac mc": {"structure": "kfac", **MC},
    "halves, by parts": KINDS["halves, by parts"],
    "checkpoint": {"structure": "grouped"},
}


def into(rank: int, place: str, sharded: bool) -> list[int]:
    case = models.fresh("gpt2")
    if sharded:
        split(case.model, case.model.transformer.h)
    data = rows.examples(case.rows)
    for kind, options in SPREAD.items():
        more = {"checkpoint": Path(place) / "state"} if kind == "checkpoint" else {}
        fs.estimate_into(
            Path(place) / kind, case.model, data, batch_size=2, progress=False, **options, **more
        )
    case = models.fresh("gpt2")
    basis = estimate(case, case.rows, structure="kfac")
    fs.estimate_into(
        Path(place) / "ekfac", case.model, data, structure="ekfac", basis=basis, progress=False
    )
    whole = estimate(case, case.rows, structure="ekfac", basis=basis)
    if rank == 0:
        whole.save(Path(place) / "whole ekfac")
    return []


# Would catch: sums that two ranks keep or none, sums that come from one rank's examples only or
# twice, shards under one name, an index of one rank's shards.
@pytest.mark.parametrize(("world", "sharded"), [(1, False), (2, True), (3, False)])
def test_all_that_ranks_keep_is_one_fisher(tmp_path, world, sharded):
    values(ranks(world, into, str(tmp_path), sharded))
    case = models.case("gpt2")
    for kind, options in SPREAD.items():
        found = fs.load(tmp_path / kind)
        whole = estimate(case, case.rows, batch_size=2, **options)
        close(plain(found), plain(whole), kind)
        for half, expected in zip(found.halves or (), whole.halves or (), strict=True):
            close(plain(half), plain(expected), kind)
        assert list(found.coverage) == list(whole.coverage) and found.layout == whole.layout
        index = json.loads((tmp_path / kind / "sums.safetensors.index.json").read_text())
        files = set(index["weight_map"].values())
        assert len(files) == world
        assert {p.name for p in (tmp_path / kind).glob("sums-*.safetensors")} == files
    close(plain(fs.load(tmp_path / "ekfac")), plain(fs.load(tmp_path / "whole ekfac")), "ekfac")
    assert not list(tmp_path.glob(".*"))


def refused(rank: int, place: str) -> None:
    case = models.fresh("mlp")
    path = Path(place) / ("file/fisher" if rank == 0 else "elsewhere/fisher")
    fs.estimate_into(path, case.model, rows.examples(case.rows), progress=False)


# Would catch: a rank that waits for the first one, which could not make the folder.
def test_a_folder_that_cannot_be_written_ends_all(tmp_path):
    (tmp_path / "file").write_text("x")
    for kind, what in ranks(2, refused, str(tmp_path)):
        assert (kind, what[0]) == ("raised", "StoreError"), what
        assert "file" in what[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


# Would catch: one rank with all the large ones, factors parted from what they belong to.
def test_owners_share_evenly_and_keep_together():
    owners = Owners({("a", "b"): 5, ("c",): 4, ("d",): 1, ("e",): 0}, 2)
    kept = [owners.of(key) for key in ("a:gradients.0", "b", "c", "d:eigenvalues", "e")]
    assert kept[0] == kept[1] != kept[2] == kept[3]
    assert torch.tensor(kept).unique().tolist() == [0, 1]
