"""Time and memory of an estimate over model sizes: ``python benchmarks/scale.py``.

Each size and structure is measured in a process of its own and written to results/scale.json as
soon as it is there; ``--sizes`` and ``--structures`` choose, ``--page`` makes docs/scale.md and its
plot again from the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import memory
from scaling import shapes

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scale.json"


def measure(size: str, structure: str) -> dict:
    """One estimate in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "scaling" / "worker.py"), size, structure],
        env={**os.environ, **memory.ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def keep(found: dict) -> None:
    """Put one figure among the others; the file is whole at any moment."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[f"{found['size']}/{found['structure']}"] = found
    structures = (*shapes.STRUCTURES, shapes.ON_DISK)
    order = [f"{size}/{name}" for size in shapes.SIZES for name in structures]
    text = json.dumps({key: known[key] for key in order if key in known}, indent=1) + "\n"
    new = RESULTS.with_suffix(f".{os.getpid()}")
    new.write_text(text)
    new.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(shapes.SIZES), choices=shapes.SIZES)
    parser.add_argument("--structures", nargs="+", default=list(shapes.STRUCTURES))
    parser.add_argument("--page", action="store_true", help="make the page, measure nothing")
    chosen = parser.parse_args()
    for size in () if chosen.page else chosen.sizes:
        for structure in chosen.structures:
            found = measure(size, structure)
            keep(found)
            print(json.dumps(found), flush=True)
    if chosen.page:
        from scaling import page

        page.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
