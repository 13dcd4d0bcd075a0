"""Do the library's choices hold up in measured loss? Three studies on the demo's models.

    python benchmarks/evidence.py            # all of it; rewrites the tables of docs/evidence.md
    python benchmarks/evidence.py --quick    # a look at tiny sizes; writes nothing
    python benchmarks/evidence.py --page     # the page from the figures in results/

The demo's models are built first where ``--demo`` does not hold them. Figures of a study are
kept as soon as it is done, so ``--studies`` renews one and leaves the others.
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

import torch
import transformers
from proving import calibrating, merging, page, pruning
from proving.subject import Sizes, Subject

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"
STUDIES = ("pruning", "merging", "calibrating")
FULL, QUICK = Sizes(rows=50, seeds=3, steps=80), Sizes(rows=10, seeds=1, steps=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--rows", type=int, default=FULL.rows)
    parser.add_argument("--seeds", type=int, default=FULL.seeds)
    parser.add_argument("--steps", type=int, default=FULL.steps)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not chosen.page:
        torch.set_num_threads(min(2, torch.get_num_threads()))
        sizes = QUICK if chosen.quick else Sizes(chosen.rows, chosen.seeds, chosen.steps)
        subject = Subject.at(chosen.demo, sizes.rows)
        for name in chosen.studies:
            start = time.process_time()
            known[name] = measure(name, subject, sizes)
            known[name]["cpu_seconds"] = round(time.process_time() - start)
            known[name]["sizes"] = vars(sizes)
            known[name]["machine"] = machine()
            if not chosen.quick:
                RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    if not chosen.quick:
        page.write(ROOT / "docs", known)


def measure(name: str, subject: Subject, sizes: Sizes) -> dict[str, Any]:
    if name == "pruning":
        return pruning.study(subject)
    if name == "merging":
        return merging.study(subject, sizes)
    return calibrating.study(subject)


def machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
