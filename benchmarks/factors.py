"""Kronecker factors, their eigenbasis, EKFAC eigenvalues and one Fisher–vector product.

    python benchmarks/factors.py                  # everything; rewrites results/ and README.md
    python benchmarks/factors.py --shapes gpt2-16x128 --libraries ours kronfluence
    python benchmarks/factors.py --quick          # a look in a few minutes; writes nothing
    python benchmarks/factors.py --table          # README.md from the figures in results/

This library, kronfluence and curvlinops on the same model and batch: the protocol of
``diagonal.py``, with every result checked against its definition in float64.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import diagonal
import factor_table
import memory
import table

HERE = Path(__file__).resolve().parent
SHAPES = [
    "gpt2-16x128",
    "gpt2-64x32",
    "llama-16x128",
    "llama-16x128+head",
    "llama-64x32",
    "gpt2-width768",
]
LIBRARIES = ["ours", "kronfluence", "curvlinops"]
PRODUCTS = ["ours", "curvlinops", "curvlinops-ef"]


def peak(shape: str, stage: str, chunk: int | None) -> int | None:
    """Peak bytes of one stage, or ``None`` where it fails."""
    task = {"task": "peak", "shape": shape, "stage": stage, "chunk": chunk}
    return diagonal.ask_worker(task, memory.ENVIRONMENT, "factor_worker.py").get("peak_bytes")


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one shape."""
    print(f"{shape}: time", file=sys.stderr, flush=True)
    task = {
        "task": "time",
        "shape": shape,
        "libraries": options.libraries,
        "products": [name for name in PRODUCTS if name.split("-")[0] in options.libraries],
        "clock": options.clock,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "tune": not options.quick,
        "check": options.check,
    }
    before = os.getloadavg()[0]
    answer = diagonal.ask_worker(task, worker="factor_worker.py")
    load = [before, os.getloadavg()[0]]
    if "failure" in answer:
        raise SystemExit(f"the worker for {shape} failed: {answer['failure']}")
    peaks: dict[str, int | None] = {}
    if options.memory:
        for stage in ["plain", *(n for n in answer["stages"] if not n.endswith("/step"))]:
            figures = answer["stages"].get(stage, {})
            if stage == "plain" or "ratio" in figures:
                print(f"{shape}: memory of {stage}", file=sys.stderr, flush=True)
                peaks[stage] = peak(shape, stage, figures.get("chunk"))
    return {
        "format": 1,
        "shape": shape,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/factors.py", *sys.argv[1:]]),
        "machine": diagonal.machine(),
        "load": load,
        "settings": {
            "clock": options.clock,
            "repeats": options.repeats,
            "warmup": options.warmup,
            "threads": 1,
        },
        **answer,
        "peak_bytes": peaks,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--quick", action="store_true", help="few shapes and runs; write nothing")
    parser.add_argument("--repeats", type=int, help="timed runs of each stage (default 9)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed runs of each stage")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-check", dest="check", action="store_false")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--table", action="store_true", help="only rewrite README.md")
    options = parser.parse_args(arguments)
    options.shapes = options.shapes or (
        ["gpt2-16x128", "llama-16x128"] if options.quick else SHAPES
    )
    options.repeats = options.repeats or (3 if options.quick else 9)
    return options


def main() -> None:
    """Measure and write."""
    options = parse()
    if not options.table:
        found = []
        for shape in options.shapes:
            figures = measure(shape, options)
            found.append(figures)
            if not options.quick:
                options.results.mkdir(parents=True, exist_ok=True)
                path = options.results / f"factors-{shape.replace('+', '-')}.json"
                path.write_text(diagonal.as_text(figures))
        print(factor_table.render(found))
        if options.quick:
            print("Nothing written: only a quick look.", file=sys.stderr)
            return
    if options.results == HERE / "results":
        found = factor_table.load(options.results, SHAPES)
        table.write(HERE / "README.md", factor_table.render(found), factor_table.MARKERS)


if __name__ == "__main__":
    main()
