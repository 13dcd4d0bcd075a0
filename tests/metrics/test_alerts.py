from __future__ import annotations

import copy

import pytest

from fisherscope.metrics.alerts import alerts

QUIET = {
    "model": {"coverage": {"linear": {"tensors": 3, "parameters": 900}}},
    "tasks": [
        {"name": "math", "n_examples": 30, "split_half_spearman": 0.9, "skipped": []},
    ],
    "importance": {
        "math": [
            {"module": "q_proj", "relative_se": 0.2, "share": 0.5},
            {"module": "o_proj", "relative_se": 0.2, "share": 0.3},
            {"module": "norm", "relative_se": 0.9, "share": 0.2},
        ]
    },
    "damage": {
        "cells": [
            {
                "on": "math",
                "by": "math",
                "predicted": 1.0,
                "predicted_low": 0.5,
                "predicted_high": 1.5,
                "measured": 1.5,
                "unit": "nats per token",
            }
        ]
    },
}


def test_numbers_on_the_limit_raise_nothing():
    # Would catch a limit that is off by one or compares with <= for <.
    assert alerts(QUIET) == []


@pytest.mark.parametrize(
    ("path", "value", "rule", "level", "shown"),
    [
        (("tasks", 0, "n_examples"), 29, "few-examples", "amber", 29),
        (("tasks", 0, "n_examples"), 9, "few-examples", "red", 9),
        (("tasks", 0, "split_half_spearman"), 0.89, "unstable-ranking", "amber", 0.89),
        (("tasks", 0, "split_half_spearman"), 0.4, "unstable-ranking", "red", 0.4),
        (("tasks", 0, "skipped"), ["7", "8"], "skipped-examples", "red", 2),
        (("importance", "math", 0, "relative_se"), 0.21, "noisy-estimate", "amber", 0.21),
        (("importance", "math", 0, "share"), 0.51, "dominant-module", "amber", 0.51),
        (("importance", "math", 1, "module"), "q_proj", "dominant-module", "amber", 0.8),
        (
            ("model", "coverage", "one example at a time through autograd: Odd.w has no fast rule"),
            {"tensors": 2, "parameters": 5},
            "slow-path",
            "amber",
            2,
        ),
        (("damage", "cells", 0, "measured"), 1.51, "damage-missed", "amber", 1.0),
        (("damage", "cells", 0, "measured"), 0.49, "damage-missed", "amber", 1.0),
    ],
)
def test_each_rule_speaks_up_alone(path, value, rule, level, shown):
    # Would catch a rule that never fires, fires on another number, or reports the wrong one.
    results = copy.deepcopy(QUIET)
    place = results
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if rule == "noisy-estimate":
        results["importance"]["math"][1]["relative_se"] = value
    (alert,) = alerts(results)
    assert (alert["rule"], alert["level"]) == (rule, level)
    assert alert["value"] == pytest.approx(shown)
    assert alert["link"].startswith("#")


def test_what_could_not_be_computed_raises_nothing():
    # Would catch a crash or a false alarm where a number is missing.
    results = copy.deepcopy(QUIET)
    results["tasks"][0]["split_half_spearman"] = None
    for row in results["importance"]["math"]:
        row["relative_se"] = None
    results["damage"]["cells"][0]["measured"] = None
    assert alerts(results) == []


def test_red_comes_first():
    # Would catch a red alert below the fold.
    results = copy.deepcopy(QUIET)
    results["tasks"][0] |= {"n_examples": 20, "skipped": ["1"]}
    assert [alert["level"] for alert in alerts(results)] == ["red", "amber"]
