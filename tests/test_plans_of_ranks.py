"""What a plan promises of models that are split or offloaded, and of several ranks."""

from __future__ import annotations

from typing import Any

import pytest

import fisherscope as fs
from fisherscope import planning
from fisherscope.engine.away import held
from fisherscope.engine.live import LiveBytes
from oracles import models, rows
from oracles.processes import ranks, split, values

OPTIONS: dict[str, dict[str, Any]] = {
    "diagonal": {"batch_size": 8},
    "packed": {},
    "kfac": {"structure": "kfac", "batch_size": 8},
    "ekfac": {"structure": "ekfac", "batch_size": 4},
    "tokens": {"unit": "token", "batch_size": 4},
}


def planned(rank: int, parts: str) -> dict[str, Any]:
    found = {}
    for kind, options in OPTIONS.items():
        case = models.fresh("llama-untied")
        if parts == "sharded":
            split(case.model, case.model.model.layers)
        # On one of the ranks, the longest batch is longer.
        data = rows.examples(rows.text([12] * 24 + [20] * 8))
        plan = fs.plan(case.model, data, **options)
        with LiveBytes(held(case.model)) as live:
            fisher = fs.estimate(case.model, data, progress=False, **options)
        assert plan.rules == fisher.coverage
        found[kind] = (plan.to_dict(), live.peak)
    return found


# Would catch: ranks that plan out of step, which hang; a plan that differs between them.
@pytest.mark.parametrize("parts", ["sharded", "whole"])
def test_plans_of_ranks(parts):
    found = values(ranks(2, planned, parts))
    for kind in OPTIONS:
        (mine, peak), (theirs, other) = (each[kind] for each in found)
        assert mine == theirs
        assert mine["memory_bytes"] == pytest.approx(max(peak, other), rel=0.2)


def timed(rank: int, sharded: bool) -> list[float]:
    del rank
    planning._timed = lambda go: go() or 1.0  # this process is for this test alone
    case = models.fresh("llama-untied")
    if sharded:
        split(case.model)
    data = rows.examples(rows.text([8] * 20))
    options: list[dict[str, Any]] = [{}, {"halves": True}, {"distributed": False}]
    if sharded:
        options.pop()
    return [fs.plan(case.model, data, batch_size=4, **each).seconds for each in options]


# Planted: all batches counted, as if one rank took them; five batches of two ranks are three
# rounds, not two and a half.
@pytest.mark.parametrize(("world", "turns"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_divide_the_time(world, turns, sharded):
    for mine in values(ranks(world, timed, sharded)):
        # Verifying takes its second, too.
        assert mine == [1 + turns, 1 + turns, 1 + 5][: len(mine)]


def failing(rank: int, how: str) -> Any:
    case = models.fresh("gpt2")
    split(case.model, case.model.transformer.h)
    data = rows.examples(case.rows if how != "other data" or rank else case.rows[:-1])
    if how == "raises" and rank == 1:
        trial, layer = planning._trial, case.model.transformer.h[0].mlp

        def armed(*arguments: Any) -> Any:
            layer.register_forward_hook(lambda *_: 1 / 0)
            return trial(*arguments)

        planning._trial = armed
    fs.plan(case.model, data, **({"distributed": False} if how == "apart" else {}))


# Would catch: a rank that waits within its trial for another that has failed.
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("other data", "IdentityError"),
        ("raises", "ZeroDivisionError"),
        ("apart", "ParameterError"),
    ],
)
def test_what_ends_one_plan_ends_all(how, error):
    for kind, what in ranks(2, failing, how):
        assert (kind, what[0]) == ("raised", error), what
