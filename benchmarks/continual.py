"""Old tasks kept while new ones are learnt: permuted digits, and a language model's fine-tuning.

    python benchmarks/continual.py                  # what is missing; rewrites docs/continual.md
    python benchmarks/continual.py --only digits    # one of digits, narrow, language, memory
    python benchmarks/continual.py --page           # tables and plots from results/continual-*.json

Figures are kept as soon as they are measured: interrupted, the same command goes on with what
is missing. ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PARTS = ("digits", "narrow", "language", "memory")


def log(text: str) -> None:
    """Say what is being measured."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Parse, measure what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--page", action="store_true", help="only tables and plots")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in PARTS if args.only is None else (args.only,):
        # A file each, so that parts can be measured side by side.
        path = RESULTS / f"continual-{part}.json"
        known: dict[str, Any] = {}
        if path.exists() and not args.fresh:
            known = json.loads(path.read_text())

        def save(path: Path = path, known: dict[str, Any] = known) -> None:
            path.write_text(json.dumps(known, indent=1) + "\n")

        if not args.page:
            log(part)
            _measure(part, known, save)
    from consolidating import page

    page.write()


def _measure(part: str, known: dict[str, Any], save: Any) -> None:
    if part in ("digits", "narrow"):
        from consolidating import digits

        digits.measure(known, digits.WIDTHS[part], save, log)
    elif part == "language":
        from consolidating import language

        language.measure(known, save, log)
    else:
        from consolidating import memory

        memory.measure(known, save, log)


if __name__ == "__main__":
    main()
