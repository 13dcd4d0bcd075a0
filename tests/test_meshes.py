"""Meshes of two dimensions: replicas of shards make what the whole makes; tensor parallelism is
refused by name.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import fisherscope as fs
from oracles import models, rows
from oracles.comparison import KINDS, close, plain, traces
from oracles.processes import ranks, split, values
from oracles.runs import estimate

REPLICATED = ["diagonal", "kfac", "halves, by parts"]


def replicated(rank: int) -> dict[str, Any]:
    del rank
    case = models.fresh("gpt2")
    split(case.model, case.model.transformer.h, replicas=2)
    found: dict[str, Any] = {
        kind: plain(estimate(case, case.rows, batch_size=1, **KINDS[kind])) for kind in REPLICATED
    }
    found["plan"] = fs.plan(case.model, rows.examples(case.rows), batch_size=1).to_dict()
    return found


# Would catch: examples shared out over one replica only and counted twice; gradients averaged
# over replicas before they are squared.
def test_replicas_of_shards_make_what_whole_makes():
    case = models.case("gpt2")
    found = values(ranks(4, replicated))
    for kind in REPLICATED:
        whole = plain(estimate(case, case.rows, batch_size=1, **KINDS[kind]))
        for mine in found:
            close(mine[kind], whole, kind)
            assert traces(mine[kind]) == pytest.approx(traces(whole), rel=1e-6)
    assert all(mine["plan"] == found[0]["plan"] for mine in found)


def parallel(rank: int, call: str, how: str) -> None:
    del rank
    case = models.fresh("llama-untied")
    names = ("data", "tensors")
    mesh = init_device_mesh("cpu", (1, 2) if how == "tensors" else (2, 1), mesh_dim_names=names)
    layers = {"model.layers.*.mlp.up_proj": ColwiseParallel()}
    parallelize_module(case.model, mesh["tensors"], layers)
    if how == "both":
        fully_shard(case.model, mesh=mesh["data"])
    getattr(fs, call)(case.model, rows.examples(case.rows))


# Would catch: a part of a weight taken for a whole one, or a hang in its gathering.
@pytest.mark.parametrize("call", ["estimate", "plan"])
@pytest.mark.parametrize("how", ["tensors", "both"])
def test_tensor_parallelism_is_refused(call, how):
    for kind, what in ranks(2, parallel, call, how):
        assert (kind, what[0]) == ("raised", "ParameterError"), what
        assert "up_proj.weight" in what[1] and "tensor parallelism is not supported" in what[1]
