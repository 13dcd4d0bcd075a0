"""The page of the percolation benchmark, and a small version of what it measures."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def percolating(monkeypatch):
    """Import a module of the benchmark, and forget it and what it has imported afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield lambda name: importlib.import_module(f"percolating.{name}")
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def results():
    """Figures as the benchmark writes them, of one model and task, made up."""
    middles = {"fisher": 0.01, "obd": 0.02, "magnitude": 0.1, "inverse": 0.9, "random": 0.08}
    head = {"model": "base", "on": "code", "level": "weight", "outcome": "ok"}
    thresholds, curves = [], []
    for order, middle in middles.items():
        by = "code" if order in ("fisher", "obd", "inverse") else ""
        ratio = 0.08 / middle
        for quantity, value in (
            ("midpoint", middle), ("robustness", middle), ("attack_ratio", ratio)
        ):  # fmt: skip
            thresholds.append(
                head | {"order": order, "by": by, "quantity": quantity, "value": value,
                        "low": 0.5 * value, "high": None if order == "inverse" else 2 * value}
            )  # fmt: skip
        curves += [
            head | {"order": order, "by": by, "removed": n, "fraction": n / 10, "loss": loss,
                    "low": loss, "high": None if n == 1 else loss}
            for n, loss in ((0, 2.0), (1, 3.0), (10, 8.0))
        ]  # fmt: skip
    pair = {"model_a": "base", "model_b": "instruct", "on": "code", "order": "fisher"}
    found = {
        "intact": [{"model": "base", "task": "code", "loss": 2.0, "uninformed": 8.0}],
        "thresholds": thresholds,
        "curves": curves,
        "differences": [
            pair | {"quantity": "midpoint", "value": 0.5, "low": 0.4, "high": 0.7,
                    "verdict": "resolved", "outcome": "ok"},
            pair | {"quantity": "robustness", "value": -0.01, "low": -0.03, "high": 0.01,
                    "verdict": "not_resolved", "outcome": "ok"},
        ],
        "critical": [{"model": "base", "by": "code", "unit": "w[3]", "cost": 0.25, "low": 0.1,
                      "high": 0.4, "rank_fisher": 2, "rank_obd": 1, "rank_magnitude": 1234,
                      "rank_gradient": 5}],
        "structure": [{"model": "base", "order": "fisher", "by": "code", "quantity": "spanning",
                       "value": 0.987}],
    }  # fmt: skip
    graph = {"left": 0.02, "left_low": 0.01, "left_high": 0.03, "spread": 0.2, "spread_low": 0.1,
             "spread_high": 0.3}  # fmt: skip
    widths = {
        "points": [{"model": f"{n} wide", "order": "fisher", "size": 10 * n, "value": 0.1 / n,
                    "low": 0.05 / n, "high": 0.2 / n, "outcome": "ok"} for n in (4, 8)],
        "slopes": [{"order": "fisher", "exponent": -0.5, "low": -0.6, "high": -0.4,
                    "outcome": "ok"}],
        "graph": [{"model": f"{n} wide", "nodes": 2 * n, **graph} for n in (4, 8)],
        "sharpening": [{"exponent": None, "outcome": "too_few_models"}],
    }  # fmt: skip
    return {"demo": found, "widths": widths, "machine": "a machine"}


# Would catch: numbers of another order or column, a claim that does not follow from the figures,
# and text outside the marks that is rewritten.
def test_the_page_says_what_the_figures_say(percolating, tmp_path):
    page = percolating("page")
    path = tmp_path / "page.md"
    marks = "".join(
        f"<!-- {n}: begin -->\nold\n<!-- {n}: end -->\nkept\n" for n in ("demo", "widths")
    )
    path.write_text(f"first\n{marks}")
    page.write(results(), path, tmp_path)
    text = path.read_text()
    assert text.startswith("first\n") and text.count("\nkept\n") == 2 and "old" not in text
    assert (
        "| code | base | 1% (0.5 to 2) | 2% (1 to 4) | 10% (5 to 20) | 90% (45 to beyond) "
        "| 8% (4 to 16) | 8 (4 to 16) |"
    ) in text
    assert "less than random order in 1 of 1 cases, in 0 also by the lower end" in text
    assert "Inverse order keeps most in 1 of 1" in text
    assert "start at exactly the intact loss and end at one and the same loss" in text
    assert "| code | Fisher | 0.5 (0.4 to 0.7) | resolved | -1 (-3 to +1) | not resolved |" in text
    assert "| code | base | `w[3]` | 0.25 (0.1 to 0.4) | 2 | 1 | 1,234 | 5 |" in text
    assert "| code | base | 98.70% | – |" in text
    assert "| 8 wide | 80 | 1.25% (0.625 to 2.5) | 2% (1 to 3) | 20% (10 to 30) |" in text
    assert "| exponent |  | -0.50 (-0.60 to -0.40) |  | too few models |" in text
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "percolation_demo.png", "percolation_widths.png"
    }  # fmt: skip


# Would catch: "all curves start at the intact loss" printed whatever was measured.
def test_the_page_says_when_a_check_fails(percolating):
    page = percolating("page")
    found = results()["demo"]
    found["curves"][0]["loss"] = 2.0000001
    assert "start at UNLIKE LOSSES" in page.checks(found)
    found["curves"][2]["loss"] = 8.0000001
    assert "end at UNLIKE LOSSES" in page.checks(found)
    next(r for r in found["thresholds"] if r["quantity"] == "attack_ratio")["value"] = 4.9
    assert "in 0 of 1 cases" in page.checks(found)


# The committed figures are those that the page shows.
def test_the_committed_page_is_up_to_date(percolating, tmp_path):
    page = percolating("page")
    figures = json.loads((BENCHMARKS / "results" / "percolation.json").read_text())
    path = tmp_path / "percolation.md"
    path.write_text(page.PAGE.read_text())
    page.write(figures, path, tmp_path)
    assert path.read_text() == page.PAGE.read_text()


# Would catch: digits of other rows, a Fisher order that is no attack, and a graph whose transition
# does not sharpen.
@pytest.mark.slow
def test_widths_on_a_small_scale(percolating):
    found = percolating("widths").measure(
        lambda text: None, widths=(8, 24, 72), steps=150, repetitions=3, points=9, draws=24
    )
    at = {(r["model"], r["order"]): r["value"] for r in found["points"]}
    for width in (8, 24, 72):
        name = f"{width} wide"
        assert at[name, "obd"] < 0.5 * at[name, "random"] < at[name, "inverse"]
    (row,) = found["sharpening"]
    assert row["outcome"] == "ok" and row["high"] < 0
    assert [r["nodes"] for r in found["graph"]] == [74 + 2 * w for w in (8, 24, 72)]
