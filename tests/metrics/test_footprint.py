"""What a run took, beside what was planned."""

from __future__ import annotations

import sys

import pytest
import torch

import fisherscope as fs
from fisherscope.metrics.estimating import estimate_tasks
from fisherscope.metrics.footprint import Footprint
from oracles import models, rows

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells on Linux only")


# Would catch: memory at the end taken for the most at any time, a peak from before, or the whole
# process counted.
@linux
def test_memory_that_is_given_back_counts():
    model = torch.nn.Linear(2, 2)
    before = torch.ones(50_000_000)
    del before
    with Footprint(model) as taken:
        some = torch.ones(20_000_000)
        del some
    assert taken.bytes is not None
    assert 0.9 * 80e6 < taken.bytes < 1.3 * 80e6
    assert taken.seconds > 0


# Would catch: a machine that can't tell, taken for one on which nothing was needed.
def test_what_is_not_known_is_not_zero(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(
        "fisherscope.metrics.footprint._CLEAR", type("P", (), {"write_text": refuse})()
    )
    with Footprint(torch.nn.Linear(2, 2)) as taken:
        pass
    assert taken.bytes is None
    plan = fs.plan(torch.nn.Linear(5, 4), rows.examples(rows.points(2, (5,), classes=4)))
    planned = "under 1 s" if plan.seconds < 1 else f"about {plan.seconds:.0f} s"
    assert plan.beside(100.0, None) == f"about 2 min (planned {planned})"
    said = f"1.5 GB (planned {plan.memory_bytes} B)"
    assert plan.beside(2.0, 1_500_000_000) == f"about 2 s (planned {planned}), {said}"


# Would catch: a run that plans and never says how it came out, or of a task that it did not make.
def test_each_task_says_what_it_took():
    case = models.case("mlp")
    tasks = {"a": rows.examples(case.rows)}
    plans = {"a": fs.plan(case.model, tasks["a"])}
    store, said = fs.FisherStore(), []
    for _ in range(2):
        estimate_tasks(
            case.model, tasks, fs.DEFAULTS, store, progress=False, say=said.append, plans=plans
        )
    assert [line.partition(" took ")[0] for line in said] == [
        "Fisher of a (1 of 1)", "Fisher of a", "Fisher of a (1 of 1): there already",
    ]  # fmt: skip
    assert "(planned " in said[1]
