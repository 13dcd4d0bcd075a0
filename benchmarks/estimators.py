"""Which Fisher to choose: bias, variance and cost of every kind, on one small language model.

    python benchmarks/estimators.py            # all of it, one core; rewrites the docs' table
    python benchmarks/estimators.py --quick    # a look in about a minute; writes nothing
    python benchmarks/estimators.py --page     # table and plots from the figures in results/

The figures of a stage are kept as soon as it is measured: interrupted, the same command goes
on with the next. ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from choosing import costs, estimates, page, structures, subject
from choosing.exact import exact

import fisherscope as fs

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "estimators.json"
# Training steps after which the model is measured.
STAGES = {"early": 40, "trained": 1000}
TASK, SEED = "prose", 0


def measure_stage(model: Any, text: subject.Text, quick: bool) -> dict[str, Any]:
    """Everything about the model as it is now."""
    held_out = text.held_out[TASK]
    data = subject.rows(held_out, 2 if quick else 24, 1)
    truth = exact(model, data)
    start = time.process_time()
    library = fs.estimate(model, data, fisher_type="type-2", progress=False)
    seconds = time.process_time() - start
    found = torch.from_numpy(estimates.flat(library.diagonal(per="token")))
    rows = {}
    for name, (options, repeats) in estimates.ESTIMATES.items():
        if quick:
            repeats = min(repeats, 4)
        rows[name] = estimates.against(model, data, options, repeats, truth)
        print(f"  {name}", file=sys.stderr, flush=True)
    fresh = [subject.rows(held_out, len(data), 100 + i) for i in range(4 if quick else 40)]
    steps = structures.directions(model, text, 2 if quick else 16)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        loss = subject.loss(model, subject.windows(held_out, 2000, generator))
    return {
        "held_out_loss": float(loss),
        "entropy": float(truth.entropy.mean()),
        "examples": len(data),
        "tokens": len(truth.entropy),
        "trace": truth.trace,
        "type-2": {
            "error": float((found - truth.diagonal).norm() / truth.diagonal.norm()),
            "seconds": seconds,
        },
        "estimates": rows,
        "fresh": estimates.on_fresh_data(model, fresh),
        "signs": estimates.labels_or_signs(model, truth),
        "structures": structures.shares(model, data, steps),
        "costs": costs.costs(model, data, 2 if quick else 7),
    }


def main() -> None:
    """Parse, measure what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows and seeds; writes nothing")
    parser.add_argument("--page", action="store_true", help="only table and plots")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    if RESULTS.exists() and not args.fresh and not args.quick:
        known = json.loads(RESULTS.read_text())["stages"]
    if not args.page and set(known) != set(STAGES):
        text, model, done = subject.read_text(), subject.new_model(SEED), 0
        for number, (stage, steps) in enumerate(STAGES.items()):
            subject.train(model, text.training[TASK], steps - done, seed=number)
            done = steps
            if stage in known:
                continue
            print(f"{stage}: after {steps} steps", file=sys.stderr, flush=True)
            known[stage] = {"steps": steps, **measure_stage(model, text, args.quick)}
            if not args.quick:
                RESULTS.write_text(json.dumps({"stages": known}, indent=1) + "\n")
    if args.quick:
        print(page.tables(known))
    else:
        page.write(known)


if __name__ == "__main__":
    main()
