from __future__ import annotations

import re

import numpy as np
import pytest

from fisherscope.errors import StoreError
from fisherscope.report import render, summary
from fisherscope.report.figures import changes, moved
from report.factory import LLAMA


def make_comparison(models=("tuned",), tasks=("math", "code"), layers=3, seed=0):
    """What an analysis of several models leaves in results.json."""
    rng = np.random.default_rng(seed)
    table, modules = [], []
    for model in models:
        for task in tasks:
            for quantity in ("loss", "trace", *(f"damage by {by}" for by in tasks)):
                change, half = rng.normal(), 0.5
                low, high = change - half, change + half
                table.append({
                    "task": task, "model": model, "quantity": quantity, "reference": 1.0,
                    "value": 1.0 + change, "change": change, "low": low, "high": high,
                    "kind": "log2 ratio" if quantity == "trace" else "difference",
                    "unit": "nats per token", "paired": True, "n": 30,
                    "outcome": "higher" if low > 0 else "lower" if high < 0 else "unresolved",
                })  # fmt: skip
            table.append({"task": task, "model": model, "quantity": "top1_mass",
                          "reference": 0.1, "value": 0.2, "change": 0.1, "low": None,
                          "high": None, "outcome": "described"})  # fmt: skip
            places = [(i, m) for i in range(layers) for m in LLAMA] + [(None, "head")]
            for layer, module in places:
                ratio = float(rng.normal())
                place = {"task": task, "model": model, "layer": layer, "module": module}
                modules.append({**place, "log2_ratio": ratio, "low": ratio - 1, "high": ratio + 1})
    return {
        "format": 1, "kind": "comparison", "reference": "base", "version": "0.1.0",
        "created": "2026-11-22T19:00:00Z", "settings": {"unit": "example"},
        "models": {name: {"source": f"org/{name}", "n_parameters": 10} for name in
                   ("base", *models)},
        "tasks": {name: [{"name": task, "loss": 2.0} for task in tasks] for name in
                  ("base", *models)},
        "table": table, "modules": modules, "tensors": [], "similarity": [], "unlike": [],
        "findings": ["On math, the loss of tuned is 1 nats per token above that of base."],
        "alerts": [{"level": "red", "rule": "few-examples", "message": "base: few", "link": None}],
        "run": {"seconds": 3.0, "command": "fisherscope analyze"},
    }  # fmt: skip


def test_the_page_stands_alone_and_links_each_model():
    # Catches a page that loads something, a missing section, or a link that leaves its folder.
    page = render(make_comparison(("tuned", "a/b <i>")))
    assert not re.search(r"(src|href)=\"https?:", page)
    for anchor in ("findings", "changes", "moved", "tasks", "models"):
        assert f'id="{anchor}"' in page
    assert 'href="tuned/report.html"' in page
    assert "<i>" not in page.replace("<i>halves</i>", "")
    assert "base: few" in page and "No alerts" not in page
    assert page == render(make_comparison(("tuned", "a/b <i>")))


def test_changes_are_those_of_the_results():
    # Catches rows without an interval drawn at zero, or resolved ones drawn as open.
    results = make_comparison(("one", "two"))
    data = changes.build(results)
    assert len(data.rows) == sum(row["low"] is not None for row in results["table"])
    assert {view.label for view in data.views()} == {"Loss", "Fisher trace", "Damage"}
    sure = sum(row["outcome"] in {"higher", "lower"} for row in results["table"])
    assert data.caption().startswith(f"{sure} of {len(data.rows)} differences")
    drawn = {view.label: str(view.svg) for view in data.views()}
    assert drawn["Loss"].count("<title>") == 4
    assert drawn["Damage"].count("<title>") == 8


def test_the_largest_resolved_change_is_named():
    # Catches the largest of all cells, resolved or not, or the wrong direction.
    results = make_comparison()
    for row in results["modules"]:
        row.update(log2_ratio=0.1, low=-0.5, high=0.5)
    results["modules"][5].update(log2_ratio=-2.0, low=-3.0, high=1.0)
    results["modules"][7].update(log2_ratio=-1.0, low=-1.5, high=-0.5)
    data = moved.build(results)
    assert "layer 0 norm for math" in data.caption()
    assert "0.50 times" in data.caption()
    assert "49 of 50 cells not resolved" in data.caption()
    assert data.span() == 1.0


def test_every_cell_is_in_its_own_panel():
    # Catches panels of two models or tasks drawn over each other.
    data = moved.build(make_comparison(("one", "two"), layers=2))
    assert len(data.panels) == 4
    assert str(data.views()[0].svg).count("<title>") == len(data.cells) == 4 * 17


@pytest.mark.parametrize("part", ["table", "modules", "similarity", "findings", "alerts"])
def test_missing_parts_are_shown_as_missing(part):
    # Catches a page that needs what a run may not have.
    results = make_comparison()
    results[part] = []
    assert "</html>" in render(results)


def test_the_terminal_says_what_was_found():
    # Catches the summary of a single model tried on several.
    assert "the loss of tuned" in summary(make_comparison())


def test_another_format_is_refused():
    # Catches a page half drawn from a file of another version.
    with pytest.raises(StoreError, match="format 7"):
        render({**make_comparison(), "format": 7})
