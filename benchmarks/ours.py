"""This library, driven below ``estimate()``: one pass over a batch that is already prepared."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Prepared
from torch import Tensor

from fisherscope.data import Example, batches
from fisherscope.defaults import FisherConfig
from fisherscope.engine.coverage import bind
from fisherscope.engine.head import PlainHead
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import prepare
from fisherscope.specs import parse
from fisherscope.structures.accumulation import accumulator


def examples(case: Case) -> list[Example]:
    """The rows of the batch as the library's own type."""
    name = "input_ids" if case.shape.is_lm else "0"
    return [
        Example(id=str(n), inputs={name: x}, labels=y)
        for n, (x, y) in enumerate(zip(case.x, case.y, strict=True))
    ]


def estimate(fused: bool = True, **options) -> Callable[[Case], Prepared]:
    """A method that makes one kind of estimate.

    Args:
        fused: Let the output head be fused with the loss, as the library itself does wherever
            it can.
        **options: Of :class:`~fisherscope.defaults.FisherConfig`.
    """

    def method(case: Case) -> Prepared:
        ready = prepare(case.model, examples(case), FisherConfig(**options))
        coverage, config = ready.coverage, ready.config
        if not fused:
            coverage = bind(ready.model, ready.parameters, PlainHead(ready.likelihood), {})
        made: dict[str, Tensor] = {}

        def run() -> None:
            made.clear()
            sums = accumulator(parse(config.structure), ready.parameters, coverage, config.unit)
            with Sweep(ready.model, ready.likelihood, coverage) as sweep:
                for group in batches(ready.examples, len(ready.examples)):
                    sums.open_batch(len(group), ready.kept_sets, sweep.device)
                    sweep.run(group, ready.labelling, sums.add)
                    sums.batch_norms()
            made.update(sums.sums)

        def result() -> dict[str, Tensor]:
            if config.structure == "grouped":
                return {name: total.flatten() for name, total in made.items()}
            return made

        slow = len(coverage.slow)
        return Prepared(run, result, f"{slow} tensors on the slow path" if slow else "")

    return method


def planning(case: Case) -> Prepared:
    """What comes before the first pass: checks, coverage, its verification, identity."""
    rows = examples(case)
    return Prepared(lambda: prepare(case.model, rows, FisherConfig()))
