"""Interleaved timing: every run of a method stands between two runs of the plain step."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

CLOCKS: dict[str, Callable[[], float]] = {
    # Unmoved by other processes as long as this one has a single thread.
    "cpu": time.process_time,
    "wall": time.perf_counter,
}


@dataclass
class Timing:
    """The raw figures of one method.

    Attributes:
        seconds: Of each run.
        ratios: Each run over the mean of the two plain runs beside it.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Median and quartiles of the ratios, median of the seconds."""
        first, median, third = quartiles(self.ratios)
        return {
            "ratio": median,
            "ratio_q1": first,
            "ratio_q3": third,
            "seconds": statistics.median(self.seconds),
        }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, with the data as the whole population."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def once(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one run; garbage of the run before is collected outside the clock."""
    gc.collect()
    start = clock()
    run()
    return clock() - start


def interleave(
    plain: Callable[[], object],
    methods: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    clock: Callable[[], float],
) -> tuple[dict[str, Timing], list[float]]:
    """Time all methods in turn, a plain step before and after each of them.

    Args:
        plain: The step that counts as 1.0.
        methods: What is timed, by name.
        repeats: Timed runs of each method.
        warmup: Untimed runs of each method and of the plain step.
        clock: Seconds since an arbitrary start.

    Returns:
        The figures by name, and the seconds of the plain steps in order.
    """
    for run in (plain, *methods.values()):
        for _ in range(warmup):
            run()
    # What lives now lives to the end: keeps the collection between runs short.
    gc.collect()
    gc.freeze()
    timings = {name: Timing() for name in methods}
    base = [once(plain, clock)]
    for _ in range(repeats):
        for name, run in methods.items():
            seconds = once(run, clock)
            base.append(once(plain, clock))
            timings[name].seconds.append(seconds)
            timings[name].ratios.append(2 * seconds / (base[-2] + base[-1]))
    gc.unfreeze()
    return timings, base
