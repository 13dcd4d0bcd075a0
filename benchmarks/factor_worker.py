"""One measurement of Kronecker factors in a process of its own; the answer as JSON."""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import factor_case
import memory
import models
import timing
import torch
from case import Case, Prepared
from factor_case import STAGES, Library, Reference, factored_layers
from factor_methods import LIBRARIES, PRODUCTS
from methods import METHODS
from table import WRONG
from worker import failure, fastest_chunk

HEAD = "+head"


def shape_of(name: str) -> models.Shape:
    """The shape of a row of the table, with or without its output head."""
    return models.SHAPES[name.removesuffix(HEAD)]


def _case(shape: models.Shape, model: torch.nn.Module | None = None) -> Case:
    return Case(shape, model or models.build(shape), *models.data(shape), shape.batch)


def _layers(name: str, model: torch.nn.Module) -> list[str]:
    return factored_layers(shape_of(name), model, head=name.endswith(HEAD))


def time(task: dict[str, Any]) -> dict[str, Any]:
    """Time and check all stages of all libraries on one shape, in one interleaved run."""
    shape = shape_of(task["shape"])
    model = models.build(shape)
    layers = _layers(task["shape"], model)
    clock = timing.CLOCKS[task["clock"]]
    plain = METHODS["plain"].prepare(_case(shape, copy.deepcopy(model)))
    answers: dict[str, dict[str, Any]] = {}
    runs, ready = {}, {}
    for name in task["libraries"]:
        library: Library | None = None
        try:
            library = LIBRARIES[name](_case(shape, copy.deepcopy(model)), layers)
            for stage in STAGES:
                answer = answers[f"{name}/{stage}"] = {}
                run = library.stage(stage)
                run()
                if stage in library.chunked and task["tune"]:
                    answer["chunk"] = fastest_chunk(
                        library.cases[stage], Prepared(run), plain, task["clock"]
                    )
                runs[f"{name}/{stage}"] = run
            ready[name] = library
        except Exception as error:
            # Which neighbour fails on which model is a finding, not an accident.
            for stage in STAGES:
                answers[f"{name}/{stage}"] = {"failure": failure(error)}
                runs.pop(f"{name}/{stage}", None)
    products = {}
    for name in task["products"]:
        answers[f"{name}/product"] = {}
        try:
            prepared = PRODUCTS[name](_case(shape, copy.deepcopy(model)))
            prepared.run()
            products[name] = prepared
            runs[f"{name}/product"] = prepared.run
        except Exception as error:
            answers[f"{name}/product"] = {"failure": failure(error)}
    if task["check"]:
        _check(_case(shape, model), layers, ready, products, answers)
    # Another quantity is no rival: it isn't timed.
    runs = {n: run for n, run in runs.items() if answers[n].get("error", 0.0) <= WRONG}
    timings, base = timing.interleave(plain.run, runs, task["repeats"], task["warmup"], clock)
    for name, figures in timings.items():
        answers[name] |= figures.summary()
        answers[name] |= {"ratios": figures.ratios, "all_seconds": figures.seconds}
    for name in ready:
        if any(f"{name}/{stage}" not in timings for stage in STAGES):
            continue
        parts = [timings[f"{name}/{stage}"] for stage in STAGES]
        whole = timing.Timing(
            [sum(times) for times in zip(*(p.seconds for p in parts), strict=True)],
            [sum(ratios) for ratios in zip(*(p.ratios for p in parts), strict=True)],
        )
        answers[f"{name}/step"] = whole.summary()
    return {"plain_seconds": base, "stages": answers, "layers": len(layers)}


def _check(
    case: Case,
    layers: list[str],
    libraries: dict[str, Library],
    products: dict[str, Prepared],
    answers: dict[str, dict[str, Any]],
) -> None:
    """Compare everything with the definitions in float64."""
    reference = Reference(case, layers)
    covariances = reference.covariances()
    found = {name: library.layers() for name, library in libraries.items()}
    eigenvalues = reference.eigenvalues(found)
    for name, one in found.items():
        for stage, error in factor_case.errors(one, covariances, eigenvalues[name]).items():
            answers[f"{name}/{stage}"]["error"] = error
    if products:
        expected = reference.product(factor_case.vector(case.model))
        for name, prepared in products.items():
            error = factor_case.product_error(prepared.result(), expected)
            answers[f"{name}/product"]["error"] = error


def peak(task: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one stage above what rests: model, batch, and what earlier stages made."""

    def prepared(shape: models.Shape):
        case = _case(shape)
        library, _, stage = task["stage"].rpartition("/")
        if not library:
            return METHODS[stage].prepare(case).run
        if stage == "product":
            return PRODUCTS[library](case).run
        made = LIBRARIES[library](case, _layers(task["shape"], case.model))
        for earlier in STAGES[: STAGES.index(stage)]:
            made.stage(earlier)()
        if task.get("chunk"):
            made.cases[stage].chunk = task["chunk"]
        return made.stage(stage)

    shape = shape_of(task["shape"])
    # Loads whatever the libraries load at the first use, so that it counts as resting.
    prepared(models.tiny(shape))()
    run = prepared(shape)
    rest = memory.resting()
    return {"peak_bytes": memory.peak_above(rest, run)}


def main() -> None:
    """Do the task given as the only argument."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    print(json.dumps({"time": time, "peak": peak}[task["task"]](task)))


if __name__ == "__main__":
    main()
