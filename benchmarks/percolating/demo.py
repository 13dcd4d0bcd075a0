"""The demo's base and instruct model taken apart, and compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import fisherscope as fs
from fisherscope.data import halves
from fisherscope.demo import build

LENGTH = 64
ORDERS = ("fisher", "obd", "magnitude", "inverse", "random")


def measure(folder: Path, kept: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Study both models; finished measurements are taken from ``kept``."""
    demo = build(folder)
    tokenizer = AutoTokenizer.from_pretrained(demo.base)
    tasks = {
        name: halves(fs.read_jsonl(path, tokenizer, max_length=LENGTH))
        for name, path in demo.tasks.items()
    }
    studies = {}
    for name, place in (("base", demo.base), ("instruct", demo.instruct)):
        log(name)
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        fishers = {
            task: fs.estimate(model, seen, progress=False) for task, (seen, _) in tasks.items()
        }
        studies[name] = fs.percolation(
            model,
            fishers,
            {task: watched for task, (_, watched) in tasks.items()},
            orders=ORDERS,
            side=0,
            folder=kept / name,
            progress=True,
            on_plan=lambda plan: log(str(plan)),
            name=name,
        )
    found = fs.compare_percolation(studies)
    return tabled(found)


def tabled(found: fs.Percolation) -> dict[str, Any]:
    """What the page needs: the orders of each task itself, and those of none."""
    return {
        "intact": found.intact.to_dict("records"),
        "thresholds": own(found.thresholds.to_dict("records")),
        "curves": own(found.curves.to_dict("records")),
        "differences": found.differences.to_dict("records"),
        "critical": [r for r in found.critical.to_dict("records") if r["place"] <= 3],
        "structure": found.structure.to_dict("records"),
        "findings": found.findings(),
        "plan": found.plan,
    }


def own(rows: list[dict[Any, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose order was read from the task that is watched, or from none."""
    return [row for row in rows if row["by"] in {row["on"], ""}]
