"""Time, memory and correctness of the diagonal Fisher: this library beside its neighbours.

    python benchmarks/diagonal.py                  # everything; rewrites results/ and README.md
    python benchmarks/diagonal.py --shapes gpt2-16x128 resnet --methods vmap ours
    python benchmarks/diagonal.py --quick          # a look in a few minutes; writes nothing
    python benchmarks/diagonal.py --table          # README.md from the figures in results/

Every shape is one process with one thread, in which the methods run in turn, each run between
two plain steps (forward and backward with gradients for all weights). Memory is measured in a
process for each method.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import memory
import models
import table
from methods import METHODS

HERE = Path(__file__).resolve().parent
QUICK_SHAPES = ["gpt2-16x128", "llama-16x128", "resnet"]
# Shapes on which the peak is also taken at four times the batch, and for which methods.
BATCH_SHAPES = ["gpt2-16x128", "llama-16x128", "resnet"]
BATCH_METHODS = ["forward", "plain", "vmap", "ours", "ours-unfused"]
PACKAGES = [
    "torch",
    "transformers",
    "numpy",
    "opacus",
    "nngeometry",
    "backpack-for-pytorch",
    "kronfluence",
    "curvlinops-for-pytorch",
]


def machine() -> dict[str, Any]:
    """What the figures were measured on, without anything that names the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def ask_worker(
    task: dict[str, Any],
    environment: dict[str, str] | None = None,
    worker: str = "worker.py",
) -> dict[str, Any]:
    """One task in a process of its own; a worker that dies leaves a ``failure``."""
    done = subprocess.run(
        [sys.executable, str(HERE / worker), json.dumps(task)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return {"failure": reason[:200]}


def peak(shape: str, method: str, chunk: int | None = None, batch: int | None = None) -> Any:
    """Peak bytes of a method, or ``None`` where it fails."""
    task = {"task": "peak", "shape": shape, "method": method, "chunk": chunk, "batch": batch}
    return ask_worker(task, memory.ENVIRONMENT).get("peak_bytes")


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one shape."""
    print(f"{shape}: time", file=sys.stderr, flush=True)
    answer = ask_worker({
        "task": "time",
        "shape": shape,
        "methods": options.methods,
        "clock": options.clock,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "tune": not options.quick,
    })
    if "failure" in answer:
        raise SystemExit(f"the worker for {shape} failed: {answer['failure']}")
    batch_memory: dict[str, dict[str, int | None]] = {}
    if options.memory:
        for name, figures in answer["methods"].items():
            if "failure" not in figures:
                print(f"{shape}: memory of {name}", file=sys.stderr, flush=True)
                figures["peak_bytes"] = peak(shape, name, figures.get("chunk"))
        for name in BATCH_METHODS if shape in BATCH_SHAPES else []:
            figures = answer["methods"].get(name, {})
            if figures.get("peak_bytes") is not None:
                batch = models.SHAPES[shape].batch
                print(f"{shape}: memory of {name}, batch {4 * batch}", file=sys.stderr, flush=True)
                large = peak(shape, name, figures.get("chunk"), 4 * batch)
                batch_memory[name] = {str(batch): figures["peak_bytes"], str(4 * batch): large}
    return {
        "format": 1,
        "shape": shape,
        "description": models.SHAPES[shape].describe(),
        "family": models.SHAPES[shape].family,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/diagonal.py", *sys.argv[1:]]),
        "machine": machine(),
        "settings": {
            "clock": options.clock,
            "repeats": options.repeats,
            "warmup": options.warmup,
            "threads": 1,
        },
        **answer,
        "batch_memory": batch_memory,
    }


def as_text(figures: dict[str, Any]) -> str:
    """JSON with five digits, a list on one line."""
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: float(f"{float(text):.5g}"))
    text = json.dumps(rounded, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(models.SHAPES), metavar="SHAPE")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), metavar="METHOD", default=list(METHODS)
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and runs; write nothing")
    parser.add_argument("--repeats", type=int, help="timed runs of each method (default 9)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed runs of each method")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--table", action="store_true", help="only rewrite README.md")
    options = parser.parse_args(arguments)
    options.shapes = options.shapes or (QUICK_SHAPES if options.quick else list(models.SHAPES))
    options.repeats = options.repeats or (3 if options.quick else 9)
    return options


def main() -> None:
    """Measure and write."""
    options = parse()
    if not options.table:
        whole = not options.quick
        found = []
        for shape in options.shapes:
            figures = measure(shape, options)
            found.append(figures)
            if whole:
                options.results.mkdir(parents=True, exist_ok=True)
                (options.results / f"{shape}.json").write_text(as_text(figures))
        print(table.render(found))
        if not whole:
            print("Nothing written: only a quick look.", file=sys.stderr)
            return
    if options.results == HERE / "results":
        table.write(HERE / "README.md", table.render(table.load(options.results)))


if __name__ == "__main__":
    main()
