"""One estimate, with the plan before it: ``python worker.py SIZE STRUCTURE``.

The last line of the standard output is the answer as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memory
import torch
import transformers

import fisherscope as fs
from fisherscope import planning
from scaling import shapes


class Anonymous:
    """Most of the process's own memory inside ``with``, above what it had.

    Pages of files are the system's to take, but the kernel's high-water mark counts them.
    """

    def __enter__(self) -> Anonymous:
        self._over, self._rest, self.peak = threading.Event(), memory._status("RssAnon"), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, memory._status("RssAnon") - self._rest)


def main(size: str, structure: str) -> dict:
    torch.set_num_threads(1)
    model, data = shapes.model(size), shapes.data()
    # What is first used is imported and allocated before anything is counted.
    on_disk = structure == shapes.ON_DISK
    options = {"structure": structure.partition(",")[0], "batch_size": shapes.BATCH}
    fs.estimate(shapes.model("10M"), shapes.data(2, 8), progress=False, **options)
    if on_disk:
        options["offload_folder"] = tempfile.gettempdir()
    else:
        options["memory_limit"] = shapes.MEMORY_LIMIT
    # Other processes on the machine lengthen wall time; one thread's processor time is what it
    # would take alone. The plan's clock has to be the same.
    planning.time.perf_counter = time.process_time
    begun = time.process_time()
    plan = fs.plan(model, data, **options)
    planned = time.process_time() - begun
    rest = memory.resting()
    clocks: list[float] = []
    kept: list[fs.Fisher] = []

    def run() -> None:
        cpu, wall = time.process_time(), time.monotonic()
        kept.append(fs.estimate(model, data, progress=False, **options))
        clocks.extend([time.process_time() - cpu, time.monotonic() - wall])

    if on_disk:
        with Anonymous() as watched:
            run()
        peak = watched.peak
    else:
        peak = memory.peak_above(rest, run)
    fisher = kept[0]
    width, layers, heads = shapes.SIZES[size]
    return {
        "size": size,
        "structure": structure,
        "parameters": sum(p.numel() for p in model.parameters()),
        "width": width,
        "layers": layers,
        "heads": heads,
        "tokens": fisher.n_tokens,
        "rounds": plan.rounds,
        "seconds_cpu": clocks[0],
        "seconds_wall": clocks[1],
        "seconds_planned": plan.seconds,
        "seconds_planning": planned,
        "bytes_model": sum(p.numel() * p.element_size() for p in model.parameters()),
        "bytes_sums": sum(t.nbytes for t in fisher.sums.values()),
        "bytes_peak": peak,
        "bytes_planned": plan.memory_bytes,
        "bytes_disk": plan.disk_bytes,
        "bytes_resident": rest + peak,
        "trace": fisher.trace(),
        "finite": all(bool(torch.isfinite(t).all()) for t in fisher.sums.values()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
