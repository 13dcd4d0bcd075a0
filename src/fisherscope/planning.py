"""``plan()``: what an estimate will cost and what covers which parameter, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.data import Example, batches
from fisherscope.defaults import FisherConfig
from fisherscope.engine.coverage import SLOW
from fisherscope.engine.sweep import Sweep
from fisherscope.preparation import Prepared, prepare, settled
from fisherscope.results import Result
from fisherscope.structures.accumulate import Accumulator

_TRIAL_EXAMPLES = 4


@dataclass(frozen=True)
class Plan(Result):
    """Cost and coverage of an estimate.

    Attributes:
        rules: Requested parameter to the rule that covers it.
        n_parameters: Number of requested parameters (elements).
        n_examples: Number of examples.
        n_tokens: Number of supervised tokens.
        passes: Backward passes per batch (for the longest batch).
        memory_bytes: Predicted peak beside the model: sums, and what the largest batch
            keeps for its backward pass.
        sums_bytes: The part of it that the sums take.
        seconds: Predicted time, from a trial on a few examples.
        sizes: Requested parameter to number of elements.
    """

    rules: dict[str, str]
    n_parameters: int
    n_examples: int
    n_tokens: int
    passes: int
    memory_bytes: int
    sums_bytes: int
    seconds: float
    sizes: dict[str, int]

    @property
    def slow(self) -> dict[str, str]:
        """Parameters on the exact slow path, with the reason."""
        return {name: text for name, text in self.rules.items() if text.startswith(SLOW)}

    def to_frame(self) -> pd.DataFrame:
        """One row per rule.

        Returns:
            Columns ``rule``, ``n_tensors``, ``n_parameters``, the largest first.
        """
        frame = pd.DataFrame({
            "rule": [self.rules[name].split(":")[0] for name in self.sizes],
            "n_parameters": list(self.sizes.values()),
        })
        grouped = frame.groupby("rule")["n_parameters"].agg(["size", "sum"]).reset_index()
        grouped.columns = pd.Index(["rule", "n_tensors", "n_parameters"])
        return grouped.sort_values("n_parameters", ascending=False, ignore_index=True)

    def __str__(self) -> str:
        frame = self.to_frame()
        width = max(len(rule) for rule in frame["rule"])
        lines = [f"{'rule':<{width}}  {'tensors':>8}  {'parameters':>14}"]
        for _, row in frame.iterrows():
            lines.append(
                f"{row['rule']:<{width}}  {row['n_tensors']:>8}  {row['n_parameters']:>14,}"
            )
        lines.append(
            f"{self.n_examples:,} examples, {self.n_tokens:,} tokens, "
            f"{self.passes} backward pass{'es' if self.passes > 1 else ''} per batch; "
            f"{_duration(self.seconds)}, {_size(self.memory_bytes)} beside the model "
            f"({_size(self.sums_bytes)} of it sums)"
        )
        for name, text in list(self.slow.items())[:5]:
            lines.append(f"slow path: {name} ({text.removeprefix(SLOW + ': ')})")
        return "\n".join(lines)


@torch.inference_mode(False)
def plan(model: nn.Module, data: Any, **options: Any) -> Plan:
    """What :func:`fisherscope.estimate` would do with the same arguments.

    Two examples go through the model to verify the rules, and a few more are timed.

    Args:
        model: The model; it comes back untouched.
        data: The examples.
        **options: The options of :func:`fisherscope.estimate` other than ``progress`` and
            ``checkpoint``.

    Returns:
        The plan; ``print`` shows it as a table.
    """
    return settled(prepare(model, data, FisherConfig(**options)), _plan)


def _plan(prepared: Prepared) -> Plan:
    groups = batches(prepared.examples, prepared.config.batch_size)
    tokens = [[prepared.likelihood.tokens(e) for e in group] for group in groups]
    split = prepared.labelling.split and prepared.likelihood.tokenwise
    passes = max(map(max, tokens)) if split else prepared.kept_sets
    trial = groups[len(groups) // 2][:_TRIAL_EXAMPLES]
    seconds, kept = _trial(prepared, trial)
    work = _work(prepared, groups, split) / max(_work(prepared, [trial], split), 1)
    sums = _sums_bytes(prepared) * (3 if prepared.config.halves else 1)
    largest = max(_padded(group) for group in groups)
    buffer = max(p.numel() for p in prepared.parameters.values()) * 4
    return Plan(
        rules=dict(prepared.coverage.text),
        n_parameters=sum(p.numel() for p in prepared.parameters.values()),
        n_examples=len(prepared.examples),
        n_tokens=sum(map(sum, tokens)),
        passes=passes,
        memory_bytes=sums + buffer + int(kept * largest / max(_padded(trial), 1)),
        sums_bytes=sums,
        seconds=seconds * work,
        sizes={name: p.numel() for name, p in prepared.parameters.items()},
    )


def _padded(group: Sequence[Example]) -> int:
    return len(group) * max(e.length for e in group)


def _work(prepared: Prepared, groups: Sequence[Sequence[Example]], split: bool) -> int:
    """Padded positions times backward passes."""
    return sum(
        _padded(g) * (max(prepared.likelihood.tokens(e) for e in g) if split else 1) for g in groups
    )


def _sums_bytes(prepared: Prepared) -> int:
    config = prepared.config
    if config.structure == "diagonal":
        return sum(p.numel() * max(4, p.element_size()) for p in prepared.parameters.values())
    return sum(
        t.numel() * t.element_size()
        for t in Accumulator(
            prepared.parameters, prepared.coverage, config.structure, config.unit
        ).sums.values()
    )


def _trial(prepared: Prepared, trial: list[Example]) -> tuple[float, int]:
    """Seconds of a pass over a few examples, and the bytes that autograd keeps for it."""
    config = prepared.config
    accumulator = Accumulator(prepared.parameters, prepared.coverage, config.structure, config.unit)
    known = {p.untyped_storage().data_ptr() for p in prepared.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    with Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:

        def go() -> None:
            accumulator.open_batch(len(trial), prepared.kept_sets, sweep.device)
            sweep.run(trial, prepared.labelling, accumulator.add)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            seconds.append(_timed(go))
        if seconds[0] < 5:
            seconds.append(_timed(go))
    return min(seconds), sum(kept.values())


def _timed(go: Callable[[], None]) -> float:
    start = time.perf_counter()
    go()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
