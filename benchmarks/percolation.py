"""Where the demo's models break when weights are removed, and how that changes with width.

    python benchmarks/percolation.py                 # rewrites results/ and docs/percolation.md
    python benchmarks/percolation.py --only widths   # one of demo, widths
    python benchmarks/percolation.py --page          # tables and plots from results/

Measurements on the demo's models are kept in runs/percolation: interrupted, the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from percolating import demo, page, widths

from fisherscope.results import plain

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "percolation.json"
PARTS = ("demo", "widths")


def log(text: str) -> None:
    """Say what is being measured."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--kept", type=Path, default=ROOT / "runs" / "percolation")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--page", action="store_true", help="only tables and plots")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.page:
        known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for part in PARTS if chosen.only is None else (chosen.only,):
            found = (
                demo.measure(chosen.demo, chosen.kept, log)
                if part == "demo"
                else widths.measure(log)
            )
            known |= {part: plain(found), "machine": machine()}
            RESULTS.write_text(json.dumps(known) + "\n")
    page.write(json.loads(RESULTS.read_text()))


def machine() -> str:
    """What it was measured on."""
    return (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, 1 thread"
    )


if __name__ == "__main__":
    main()
