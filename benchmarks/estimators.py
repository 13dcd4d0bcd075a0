"""Which Fisher to choose: bias, variance and cost of every kind, on one small language model.

    python benchmarks/estimators.py            # all of it, one core; rewrites the docs' table
    python benchmarks/estimators.py --quick    # a look in about a minute; writes nothing
    python benchmarks/estimators.py --page     # table and plots from the figures in results/

Figures are kept as soon as they are measured: interrupted, the same command goes on with what
is missing. ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from choosing import costs, estimates, page, structures, subject
from choosing.exact import Exact, exact
from transformers import LlamaForCausalLM

import fisherscope as fs

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "estimators.json"
# Training steps after which the model is measured.
STAGES = {"early": 40, "trained": 800}
TASK, SEED, ROWS = "prose", 0, 12


def measure(
    model: LlamaForCausalLM,
    text: subject.Text,
    known: dict[str, Any],
    save: Callable[[], None],
    *,
    quick: bool,
    last: bool,
) -> None:
    """Fill in what is not known yet about the model as it is now.

    Args:
        model: The model.
        text: Its text.
        known: Part to figures, added to.
        save: Called after each part.
        quick: Take few rows and repeats.
        last: Also measure what one stage is enough for.
    """
    held_out = text.held_out[TASK]
    data = subject.rows(held_out, 2 if quick else ROWS, 1)

    @cache
    def truth() -> Exact:
        return exact(model, data)

    def about() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            loss = subject.loss(model, subject.windows(held_out, 2000, generator))
        entropy = truth().entropy
        return {
            "held_out_loss": float(loss),
            "entropy": float(entropy.mean()),
            "examples": len(data),
            "tokens": len(entropy),
            "trace": truth().trace,
        }

    def expected() -> dict[str, float]:
        start = time.process_time()
        fisher = fs.estimate(model, data, fisher_type="type-2", progress=False)
        seconds = time.process_time() - start
        found = torch.from_numpy(estimates.flat(fisher.diagonal(per="token")))
        reference = truth().diagonal
        error = float((found - reference).norm() / reference.norm())
        return {"error": error, "seconds": seconds}

    def one(name: str) -> Callable[[], dict[str, Any]]:
        options, repeats = estimates.ESTIMATES[name]
        repeats = min(repeats, 3) if quick else repeats
        return lambda: estimates.against(model, data, options, repeats, truth())

    def kept() -> dict[str, Any]:
        steps = structures.directions(model, text, 2 if quick else 12)
        return structures.shares(model, data, steps)

    def fresh() -> dict[str, Any]:
        sets = [subject.rows(held_out, len(data), 100 + i) for i in range(3 if quick else 24)]
        return estimates.on_fresh_data(model, sets)

    parts: dict[str, Callable[[], Any]] = {
        "about": about,
        "signs": lambda: estimates.labels_or_signs(model, truth()),
        "type-2": expected,
        **{name: one(name) for name in estimates.ESTIMATES},
        "structures": kept,
    }
    if last:
        rows = subject.rows(held_out, 4 if quick else 64, 3)
        parts |= {"fresh": fresh, "costs": lambda: costs.costs(model, rows, 2 if quick else 5)}
    for name, part in parts.items():
        if name not in known:
            print(f"  {name}", file=sys.stderr, flush=True)
            known[name] = part()
            save()


def main() -> None:
    """Parse, measure what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows and seeds; writes nothing")
    parser.add_argument("--page", action="store_true", help="only table and plots")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stages: dict[str, dict[str, Any]] = {}
    if RESULTS.exists() and not args.fresh and not args.quick:
        stages = json.loads(RESULTS.read_text())

    def save() -> None:
        if not args.quick:
            RESULTS.write_text(json.dumps(stages, indent=1) + "\n")

    if not args.page:
        text, model, done = subject.read_text(), subject.new_model(SEED), 0
        for number, (stage, steps) in enumerate(STAGES.items()):
            subject.train(model, text.training[TASK], steps - done, seed=number)
            done = steps
            print(f"{stage}: after {steps} steps", file=sys.stderr, flush=True)
            known = stages.setdefault(stage, {"steps": steps})
            last = steps == max(STAGES.values())
            measure(model, text, known, save, quick=args.quick, last=last)
    if args.quick:
        print(page.tables(stages))
    else:
        page.write(stages)


if __name__ == "__main__":
    main()
