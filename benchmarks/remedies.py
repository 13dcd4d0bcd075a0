"""What would have helped the demo's base model to keep code and prose while it learns to answer.

    python benchmarks/remedies.py            # rewrites results/remedies.json and docs/remedies.md
    python benchmarks/remedies.py --page     # the page from the figures in results/

Old tasks are what the base model was trained on, source code and prose; Fishers are made from its
training text, losses are measured on held-out modules. The new task is questions and answers. An
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import remedies_page
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import fisherscope as fs
from fisherscope.demo import build
from fisherscope.demo.build import WINDOW, _lessons
from fisherscope.demo.corpora import read_corpora
from fisherscope.demo.passages import evenly
from fisherscope.demo.training import text_batches
from fisherscope.results import plain
from fisherscope.studies.tuning import Schedule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "remedies.json"
KEPT = ROOT / "runs" / "remedies"
# Slow enough that half of what is learnt takes several steps; with the demo's own rate of 1e-3 it
# takes less than four, and levels would be read off a single straight line.
STEPS, RATE, EVERY = 20, 3e-4, 2
LESSONS, FISHER_ROWS = 480, 32
# Questions are short, and their losses vary: more of them.
HELD_OUT = {"code": 8, "prose": 8, "qa": 24}
OLD, NEW = ("code", "prose"), "qa"
SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true")
    if not parser.parse_args().page:
        torch.set_num_threads(1)
        RESULTS.write_text(json.dumps(_rounded(plain(measure()))) + "\n")
    remedies_page.write(json.loads(RESULTS.read_text()))


def measure() -> dict[str, Any]:
    start = time.process_time()
    place = Path(os.environ.get("FISHERSCOPE_DEMO", ROOT / "runs" / "demo"))
    if not (place / "models").is_dir():
        build(place, progress=False)
    path = str(place / "models" / "base")
    model, tokenizer = (c.from_pretrained(path) for c in (AutoModelForCausalLM, AutoTokenizer))
    corpora = read_corpora()
    held_out = {
        name: evenly(fs.read_jsonl(place / "tasks" / f"{name}.jsonl", tokenizer), count)
        for name, count in HELD_OUT.items()
    }
    protect = {}
    for name in OLD:
        draw = text_batches(tokenizer, [(corpora.documents[name], FISHER_ROWS)], WINDOW)
        ids = draw(torch.Generator().manual_seed(1)).labels
        protect[name] = {"input_ids": ids, "labels": ids}
    found = fs.remedies(
        model,
        evenly(_lessons(corpora, tokenizer), LESSONS),
        {name: held_out[name] for name in OLD},
        held_out=held_out[NEW],
        protect=protect,
        name=NEW,
        seeds=SEEDS,
        schedule=Schedule(steps=STEPS, peak=RATE),
        every=EVERY,
        fisher_rows=FISHER_ROWS,
        folder=KEPT,
    )
    return {
        "study": found,
        "findings": found.findings(),
        "cpu_seconds": round(time.process_time() - start),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread",
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
