"""Predicted against measured damage, on digits and on the demo's models.

    python benchmarks/interference.py            # rewrites results/ and the tables of docs/
    python benchmarks/interference.py --page     # the tables from the figures in results/

Digits: a small network (64-64-10, tanh) on scikit-learn's digits, once trained until it is right
and once for ten steps only; its tasks are the low digits, the high digits, and all of them upside
down. Demo: three tasks under the base model, and what its fine-tuning to the instruct model cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import table
import torch
import transformers
from sklearn.datasets import load_digits
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import fisherscope as fs
from fisherscope.demo import build
from fisherscope.likelihoods import Classification
from fisherscope.results import plain
from fisherscope.studies.forgetting import forgetting
from fisherscope.studies.interference import interference
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "interference.json"
PAGE = ROOT / "docs" / "interference.md"
MARKS = ("<!-- prediction: begin -->", "<!-- prediction: end -->")
STEPS = {"trained": 600, "under-trained": 10}
ROWS, DRAWS, DIGIT_DRAWS = 64, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page:
        torch.set_num_threads(1)
        RESULTS.write_text(json.dumps(plain(measure(chosen.demo))) + "\n")
    table.write(PAGE, render(json.loads(RESULTS.read_text())) + "\n", MARKS)


def measure(folder: Path) -> dict[str, Any]:
    start = time.process_time()
    studies: dict[str, Any] = {}
    for name, steps in STEPS.items():
        model, tasks = digits(steps)
        found = interference(
            model, tasks, draws=DIGIT_DRAWS, structures=("diagonal", "kfac", "ekfac", "dense"),
            conflicts=False, progress=False,
        )  # fmt: skip
        studies[f"digits, {name}"] = kept(found)
    demo = build(folder)
    tokenizer = AutoTokenizer.from_pretrained(demo.base)
    base, instruct = (
        AutoModelForCausalLM.from_pretrained(place).eval() for place in (demo.base, demo.instruct)
    )
    tasks = {
        name: fs.read_jsonl(path, tokenizer, max_examples=ROWS) for name, path in demo.tasks.items()
    }
    found = interference(base, tasks, draws=DRAWS, conflicts=False, progress=False)
    studies["demo, base model"] = kept(found)
    lost = forgetting(base, instruct, tasks, draws=DRAWS, progress=False)
    return {
        "studies": studies,
        "forgetting": {
            "stages": lost.stages,
            "calibration": lost.calibration,
            "findings": lost.findings(),
        },
        "cpu_seconds": round(time.process_time() - start),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread",
    }


def digits(steps: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network trained on two thirds of the digits, and tasks from the last third."""
    bunch: Any = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = 2 * len(x) // 3
    train, test = order[:cut], order[cut:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    fine_tune(
        model,
        row_batches(fs.examples((x[train], y[train])), 64),
        Schedule(steps=steps, peak=3e-3, weight_decay=0.01),
        likelihood=Classification(),
        seed=0,
        progress=False,
    )
    a, b = x[test], y[test]
    low = b < 5
    turned = a.reshape(-1, 8, 8).flip(1, 2).reshape(-1, 64)
    return model, {
        "low": (a[low], b[low]),
        "high": (a[~low], b[~low]),
        "upside down": (turned, b),
    }


def kept(found: fs.Interference) -> dict[str, Any]:
    cells = found.cells[found.cells["on"] != found.cells["by"]]
    return {
        "calibration": found.calibration,
        "reliable": found.reliable,
        "small": found.small,
        "cells": cells,
        "findings": found.findings(),
    }


def render(results: Mapping[str, Any]) -> str:
    lines = [
        "| | steps | method | rank correlation | slope | log error of curvature | "
        "predicted / measured curvature |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, study in results["studies"].items():
        for row in sorted(
            (r for r in study["calibration"] if r["scale"] is None),
            key=lambda r: r["log_error"] or 0.0,
        ):
            lines.append(
                f"| {name} | up to {study['small']:g}, {row['n']:.0f} points | {row['method']} | "
                f"{spread(row, 'spearman')} | {spread(row, 'slope')} | {spread(row, 'log_error')} "
                f"| {row['ratio']:.2f} |"
            )
    lines += ["", "How far the full form holds:", "", "| | step | slope | rank correlation |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name, study in results["studies"].items():
        for row in study["calibration"]:
            if row["scale"] is not None and row["method"] == "full":
                lines.append(
                    f"| {name} | {row['scale']:g} | {spread(row, 'slope')} | "
                    f"{spread(row, 'spearman')} |"
                )
    lines += [
        "",
        "What the demo's fine-tuning on questions cost (base to instruct), nats per token:",
    ]
    lines += ["", "| task | measured | full | diagonal | kfac | ekfac | KL to base | ½δᵀFδ |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in results["forgetting"]["stages"]:
        cells = (row[key] for key in ("predicted", "diagonal", "kfac", "ekfac", "kl", "second"))
        lines.append(
            f"| {row['task']} | {spread(row, 'loss_change')} | "
            + " | ".join(f"{value:.3g}" for value in cells)
            + " |"
        )
    took = results["cpu_seconds"]
    lines += ["", f"Measured on {results['machine']}; {took} s of processor time."]
    return "\n".join(lines)


def spread(row: Mapping[str, Any], key: str) -> str:
    value, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3g}" if low is None else f"{value:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
