"""One measurement in a process of its own: ``python worker.py '{"task": ..., ...}'``.

The last line of the standard output is the answer as JSON. A fresh process per shape (time) and
per method (memory) keeps one measurement's heap, hooks and crashes away from the next.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import memory
import models
import timing
import torch
from case import Case, Method, Prepared
from methods import METHODS, brute_force, row_sums
from torch import Tensor


def errors(result: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Any]:
    """How far a result is from the reference: worst tensor, and how much is covered."""
    worst, where = 0.0, ""
    for name, value in result.items():
        expected = reference[name]
        if value.shape != expected.shape:
            error = float("inf")
        else:
            error = ((value.double() - expected).norm() / expected.norm()).item()
        if not error <= worst:
            worst, where = error, name
    covered = sum(reference[name].numel() for name in result)
    return {
        "worst": worst,
        "tensor": where,
        "tensors": len(result),
        "of_tensors": len(reference),
        "share": covered / sum(value.numel() for value in reference.values()),
    }


def failure(error: Exception) -> str:
    """Class and first line of an exception, without the folders of this machine."""
    text = str(error).strip().splitlines() or [""]
    return re.sub(r"/\S+/", "", f"{type(error).__name__}: {text[0]}")[:200]


def fastest_chunk(case: Case, prepared: Prepared, plain: Prepared, clock: str) -> int:
    """The number of examples at a time at which a method is fastest, between plain steps."""
    best, best_seconds = case.chunk, float("inf")
    for chunk in sorted({1, 4, 16, case.shape.batch}):
        if chunk > case.shape.batch:
            continue
        case.chunk = chunk
        prepared.run()
        seconds = float("inf")
        for _ in range(3):
            plain.run()
            seconds = min(seconds, timing.once(prepared.run, timing.CLOCKS[clock]))
        if seconds < best_seconds:
            best, best_seconds = chunk, seconds
    case.chunk = best
    return best


def _case(shape: models.Shape, chunk: int | None = None, model: torch.nn.Module | None = None):
    return Case(shape, model or models.build(shape), *models.data(shape), chunk or shape.batch)


def time(task: dict[str, Any]) -> dict[str, Any]:
    """Time and check all methods on one shape, in one interleaved run."""
    shape = models.SHAPES[task["shape"]]
    model = models.build(shape)
    reference = brute_force(_case(shape, model=copy.deepcopy(model)))
    references = {
        "diagonal": reference,
        "grouped": {n: row_sums(shape, n, value) for n, value in reference.items()},
    }
    plain = METHODS["plain"].prepare(_case(shape, model=copy.deepcopy(model)))
    answers: dict[str, dict[str, Any]] = {}
    runs = {}
    for name in task["methods"]:
        method: Method = METHODS[name]
        answer = answers[name] = {"label": method.label}
        if shape.family not in method.families:
            del answers[name]
            continue
        case = _case(shape, model=copy.deepcopy(model))
        try:
            prepared = method.prepare(case)
            prepared.run()
            if method.chunked:
                answer["chunk"] = case.chunk
                if task["tune"]:
                    answer["chunk"] = fastest_chunk(case, prepared, plain, task["clock"])
            if method.reference and prepared.result is not None:
                prepared.run()
                answer["errors"] = errors(prepared.result(), references[method.reference])
            answer["note"] = prepared.note
            runs[name] = prepared.run
        except Exception as error:
            # Which neighbour fails on which model is a finding, not an accident.
            answer["failure"] = failure(error)
    del reference, references
    timings, base = timing.interleave(
        plain.run, runs, task["repeats"], task["warmup"], timing.CLOCKS[task["clock"]]
    )
    for name, figures in timings.items():
        answers[name] |= figures.summary()
        answers[name] |= {"ratios": figures.ratios, "all_seconds": figures.seconds}
    return {"plain_seconds": base, "methods": answers}


def peak(task: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one method above the resting model and batch."""
    shape = models.SHAPES[task["shape"]]
    shape = shape.with_batch(task.get("batch") or shape.batch)
    method = METHODS[task["method"]]
    # Loads whatever the libraries load at the first use, so that it counts as resting.
    warm = method.prepare(_case(models.tiny(shape)))
    warm.run()
    del warm
    case = _case(shape, task.get("chunk"))
    rest = memory.resting()

    def measured() -> None:
        prepared = method.prepare(case)
        prepared.run()
        prepared.run()

    return {"peak_bytes": memory.peak_above(rest, measured)}


def main() -> None:
    """Do the task given as the only argument."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    answer = {"time": time, "peak": peak}[task["task"]](task)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
