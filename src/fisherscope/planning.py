"""``plan()``: what an estimate will cost and what covers which parameter, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope import specs
from fisherscope.data import Example, batches
from fisherscope.defaults import FisherConfig
from fisherscope.engine.coverage import SLOW
from fisherscope.engine.sweep import Sweep
from fisherscope.partition import partition, sums_bytes
from fisherscope.preparation import Prepared, prepare, settled
from fisherscope.results import Result
from fisherscope.structures.accumulation import accumulator, outline

_TRIAL_EXAMPLES = 4
_TRIAL_COLUMNS = 4


@dataclass(frozen=True)
class Plan(Result):
    """Cost and coverage of an estimate.

    Attributes:
        rules: Requested parameter to the rule that covers it.
        n_parameters: Number of requested parameters (elements).
        n_examples: Number of examples.
        n_tokens: Number of supervised tokens.
        passes: Backward passes per batch (for the longest batch).
        rounds: Passes over the data: two for EKFAC, more under a ``memory_limit``.
        memory_bytes: Predicted peak beside the model: sums, for EKFAC the eigenvectors of all
            factors, and what the largest batch keeps for its backward pass.
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
    rounds: int = 1

    @property
    def slow(self) -> dict[str, str]:
        """Parameters on the exact slow path, with the reason."""
        return {name: text for name, text in self.rules.items() if SLOW in text}

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
            f"{self.passes:,} backward pass{'es' if self.passes > 1 else ''} per batch"
            + (f", {self.rounds} rounds over the data; " if self.rounds > 1 else "; ")
            + f"{_duration(self.seconds)}, {_size(self.memory_bytes)} beside the model "
            f"({_size(self.sums_bytes)} of it sums)"
        )
        for name, text in list(self.slow.items())[:5]:
            before, _, reason = text.partition(f"{SLOW}: ")
            lines.append(f"slow path: {name} ({reason.removesuffix(')' if before else '')})")
        return "\n".join(lines)


@torch.inference_mode(False)
def plan(
    model: nn.Module, data: Any, *, memory_limit: int | str | None = None, **options: Any
) -> Plan:
    """What :func:`fisherscope.estimate` would do with the same arguments.

    Two examples go through the model to verify the rules, and a few more are timed.

    Args:
        model: The model; it comes back untouched.
        data: The examples.
        memory_limit: As in :func:`fisherscope.estimate`. Default: ``None``.
        **options: The options of :func:`fisherscope.estimate` other than ``progress``,
            ``checkpoint`` and ``basis``.

    Returns:
        The plan; ``print`` shows it as a table.
    """
    prepared = prepare(model, data, FisherConfig(**options))
    return settled(prepared, lambda p: _plan(p, memory_limit))


def _plan(prepared: Prepared, limit: int | str | None) -> Plan:
    stages = [prepared]
    if isinstance(prepared.spec, specs.EKFAC):
        stages = [_factors(prepared), prepared]
    groups = batches(prepared.examples, prepared.config.batch_size)
    tokens = [[prepared.likelihood.tokens(e) for e in group] for group in groups]
    labelling = prepared.labelling
    split = (labelling.split or labelling.columns) and prepared.likelihood.tokenwise
    longest = max(map(max, tokens)) if split else 1
    trial = groups[len(groups) // 2][:_TRIAL_EXAMPLES]
    # The eigenvalues of an EKFAC are taken to cost what its factors do.
    seconds, kept = _trial(stages[0], trial)
    work = _work(prepared, groups, bool(split)) / max(_work(prepared, [trial], bool(split)), 1)
    work *= max(1, labelling.columns / _TRIAL_COLUMNS)
    sums = [size for stage in stages for size in _sums(stage, limit)]
    most = max(sums) * (3 if prepared.config.halves else 1)
    basis = sum(sums_bytes(stages[0]).values()) if len(stages) > 1 else 0
    largest = max(_padded(group) for group in groups)
    buffer = max(p.numel() for p in prepared.parameters.values()) * 4
    return Plan(
        rules=outline(
            prepared.spec, prepared.parameters, prepared.coverage, prepared.config.unit
        ).coverage_text(),
        n_parameters=sum(p.numel() for p in prepared.parameters.values()),
        n_examples=len(prepared.examples),
        n_tokens=sum(map(sum, tokens)),
        passes=longest * max(prepared.kept_sets, labelling.columns),
        memory_bytes=most + basis + buffer + int(kept * largest / max(_padded(trial), 1)),
        sums_bytes=most,
        seconds=seconds * work * len(sums),
        sizes={name: p.numel() for name, p in prepared.parameters.items()},
        rounds=len(sums),
    )


def _sums(prepared: Prepared, limit: int | str | None) -> list[int]:
    """Bytes of the sums of each pass over the data."""
    sizes = sums_bytes(prepared)
    parts = partition(prepared, limit)
    return [sum(size for names, size in sizes.items() if names[0] in part) for part in parts]


def _factors(prepared: Prepared) -> Prepared:
    config = replace(prepared.config, structure=specs.KFAC(**asdict(prepared.spec)))
    return replace(prepared, config=config)


def _padded(group: Sequence[Example]) -> int:
    return len(group) * max(e.length for e in group)


def _work(prepared: Prepared, groups: Sequence[Sequence[Example]], split: bool) -> int:
    """Padded positions times backward passes."""
    return sum(
        _padded(g) * (max(prepared.likelihood.tokens(e) for e in g) if split else 1) for g in groups
    )


def _trial(prepared: Prepared, trial: list[Example]) -> tuple[float, int]:
    """Seconds of a pass over a few examples, and the bytes that autograd keeps for it."""
    sums = accumulator(prepared.spec, prepared.parameters, prepared.coverage, prepared.config.unit)
    labelling = prepared.labelling
    if labelling.columns:
        labelling = replace(labelling, columns=min(labelling.columns, _TRIAL_COLUMNS))
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
            sums.open_batch(len(trial), prepared.kept_sets, sweep.device)
            inputs = sums.inputs if sums.needs_inputs else None
            sweep.run(trial, labelling, sums.add, inputs=inputs, close=sums.close)
            sums.batch_norms()

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
