"""``plan()``: what an estimate will cost and what covers which parameter, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fisherscope.data import Example
from fisherscope.defaults import FisherConfig
from fisherscope.distributed import Ranks
from fisherscope.engine.away import held, is_sharded
from fisherscope.engine.coverage import SLOW
from fisherscope.engine.live import LiveBytes
from fisherscope.engine.sweep import Sweep
from fisherscope.partition import Budget, is_apart, is_here, stages_of, sums_bytes
from fisherscope.passes import rounds
from fisherscope.preparation import Prepared, agreed, settled
from fisherscope.results import Result
from fisherscope.structures.accumulation import accumulator, outline

# A trial of fewer tokens would measure overhead, one of more would be work.
_TRIAL_EXAMPLES, _TRIAL_TOKENS = 16, 1024
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
        memory_bytes: Predicted peak of the tensors beside the model: sums, for EKFAC the factors
            and their eigenvectors, and what the largest batch needs; or what verifying the rules
            takes, if that is more.
        sums_bytes: The sums that are in memory at once: those of the largest part of a
            ``memory_limit``, of all halves unless finished ones are on disk.
        fisher_bytes: The Fisher itself with its halves, on disk or in memory.
        seconds: Predicted time, from a trial on a few examples; verifying the rules included.
            Of several ranks, the memory is that of the one that takes most, the time that of the
            slowest.
        sizes: Requested parameter to number of elements.
        disk_bytes: What finished sums take on disk; 0 if they are in memory.
    """

    rules: dict[str, str]
    n_parameters: int
    n_examples: int
    n_tokens: int
    passes: int
    memory_bytes: int
    sums_bytes: int
    fisher_bytes: int
    seconds: float
    sizes: dict[str, int]
    rounds: int = 1
    disk_bytes: int = 0

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

    def beside(self, seconds: float, memory_bytes: int | None) -> str:
        """What an estimate has taken, beside what was planned.

        Args:
            seconds: How long it took.
            memory_bytes: Its peak beside the model; ``None`` if that is not known.

        Returns:
            A few words.
        """
        said = f"{_duration(seconds)} (planned {_duration(self.seconds)})"
        if memory_bytes is not None:
            said += f", {_size(memory_bytes)} (planned {_size(self.memory_bytes)})"
        return said

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
            + (f", {_size(self.disk_bytes)} on disk" if self.disk_bytes else "")
        )
        for name, text in list(self.slow.items())[:5]:
            before, _, reason = text.partition(f"{SLOW}: ")
            lines.append(f"slow path: {name} ({reason.removesuffix(')' if before else '')})")
        return "\n".join(lines)


@torch.inference_mode(False)
def plan(
    model: nn.Module,
    data: Any,
    *,
    memory_limit: int | str | None = None,
    offload_folder: str | Path | None = None,
    distributed: bool = True,
    **options: Any,
) -> Plan:
    """What :func:`fisherscope.estimate` would do with the same arguments.

    Two examples go through the model to verify the rules, and a few more are timed. Every rank
    of a process group makes this call, too, and gets the same plan.

    Args:
        model: The model; it comes back untouched.
        data: The examples.
        memory_limit: As in :func:`fisherscope.estimate`. Default: ``None``.
        offload_folder: As in :func:`fisherscope.estimate`. Default: ``None``.
        distributed: As in :func:`fisherscope.estimate`. Default: ``True``.
        **options: The options of :func:`fisherscope.estimate` other than ``progress``,
            ``checkpoint`` and ``basis``.

    Returns:
        The plan; ``print`` shows it as a table.
    """
    ranks, config = Ranks(together=distributed), FisherConfig(**options)
    budget = Budget.of(memory_limit, offload_folder)
    found: list[Prepared] = []
    with LiveBytes(held(model)) as live:
        seconds = _timed(lambda: found.append(agreed(model, data, config, ranks, budget.limit)))

    def mine() -> Plan:
        return settled(found[0], lambda p: _plan(p, budget, seconds, live.peak, ranks))

    said = ranks.each(mine)
    return replace(
        said[0],
        memory_bytes=max(plan.memory_bytes for plan in said),
        seconds=max(plan.seconds for plan in said),
    )


def _plan(
    prepared: Prepared, budget: Budget, verifying: float, verified: int, ranks: Ranks
) -> Plan:
    stages = stages_of(prepared)
    turns = rounds(prepared.examples, prepared.config, ranks.world)
    groups = [group for turn in turns for group in turn]
    tokens = [[prepared.likelihood.tokens(e) for e in group] for group in groups]
    labelling = prepared.labelling
    split = (labelling.split or labelling.columns) and prepared.likelihood.tokenwise
    longest = max(map(max, tokens)) if split else 1
    middle = groups[len(groups) // 2]
    trial = middle[: max(1, min(_TRIAL_EXAMPLES, _TRIAL_TOKENS // max(e.length for e in middle)))]
    largest = max(groups, key=_padded)
    # The eigenvalues of an EKFAC are taken to cost what its factors do.
    part = max(_parts(stages[0], budget), key=lambda part: part[1])[0]
    seconds, needed = _trial(stages[0].only(part), trial, _padded(largest), ranks)
    # Ranks take the batches of a round at the same time.
    work = sum(max(_work(prepared, group, bool(split)) for group in turn) for turn in turns)
    work /= max(_work(prepared, trial, bool(split)), 1)
    work *= max(1, labelling.columns / _TRIAL_COLUMNS)
    sums = [[size for _, size in _parts(stage, budget)] for stage in stages]
    kept = budget.kept_bytes(prepared)
    mapped = kept is not None and budget.limit is None and is_here(prepared)
    working = [0 if mapped else max(some) * (2 if is_apart(prepared) else 1) for some in sums]
    if kept is None:
        most = max(map(max, sums)) * (3 if prepared.config.halves else 1)
        both = zip(stages, sums, working, strict=True)
        peak = max(verified, *(_peak(*one, needed) for one in both))
    else:
        most = max(working)
        peak = max(verified, most + needed)
    return Plan(
        rules=outline(
            prepared.spec, prepared.parameters, prepared.coverage, prepared.config.unit
        ).coverage_text(),
        n_parameters=sum(p.numel() for p in prepared.parameters.values()),
        n_examples=len(prepared.examples),
        n_tokens=sum(map(sum, tokens)),
        passes=longest * max(prepared.kept_sets, labelling.columns),
        memory_bytes=peak,
        sums_bytes=most,
        fisher_bytes=sum(map(sum, sums)) * (3 if prepared.config.halves else 1),
        seconds=verifying + seconds * work * sum(map(len, sums)),
        sizes={name: p.numel() for name, p in prepared.parameters.items()},
        rounds=sum(map(len, sums)),
        disk_bytes=kept or 0,
    )


def _parts(prepared: Prepared, budget: Budget) -> list[tuple[tuple[str, ...], int]]:
    """The parameters of each pass over the data, and the bytes of their sums."""
    sizes = sums_bytes(prepared)
    return [
        (part, sum(size for names, size in sizes.items() if names[0] in part))
        for part in budget.parts(prepared)
    ]


def _peak(prepared: Prepared, sums: Sequence[int], working: int, needed: int) -> int:
    """Bytes at once in memory: what is kept of earlier parts and halves, and the pass at hand."""
    config, largest, here = prepared.config, max(sums), is_here(prepared)
    # Finished sums go to the CPU; elsewhere they are no burden on the device.
    before = (sum(sums) - largest if here else 0) + (sum(sums) if here and config.halves else 0)
    factors = stages_of(prepared)[:-1]
    before += 2 * sum(size for stage in factors for size in sums_bytes(stage).values())
    after = largest if not config.halves else 2 * sum(sums)
    return before + max(working + needed, after)


def _padded(group: Sequence[Example]) -> int:
    return len(group) * max(e.length for e in group)


def _work(prepared: Prepared, group: Sequence[Example], split: bool) -> int:
    """Padded positions times backward passes."""
    return _padded(group) * (max(prepared.likelihood.tokens(e) for e in group) if split else 1)


def _trial(
    prepared: Prepared, trial: list[Example], padded: int, ranks: Ranks
) -> tuple[float, int]:
    """Seconds of a pass over a few examples, and the bytes beside the sums for a larger batch."""
    sums = accumulator(prepared.spec, prepared.parameters, prepared.coverage, prepared.config.unit)
    labelling = prepared.labelling
    if labelling.columns:
        labelling = replace(labelling, columns=min(labelling.columns, _TRIAL_COLUMNS))
    model = prepared.model
    known = [*held(model), *sums.sums.values()]
    found: list[tuple[int, int]] = []
    together = ranks if is_sharded(model) else None
    with Sweep(model, prepared.likelihood, prepared.coverage, together, trial[0]) as sweep:

        def go(some: list[Example]) -> None:
            sums.open_batch(len(some), prepared.kept_sets, sweep.device)
            inputs = sums.inputs if sums.needs_inputs else None
            with sweep.steps.round():
                sweep.run(some, labelling, sums.add, inputs=inputs, close=sums.close)
            sums.batch_norms()

        # Two sizes tell what grows with the batch from what doesn't; they warm up, too.
        for some in (trial[: len(trial) // 2], trial):
            if some:
                with LiveBytes(known) as live:
                    go(some)
                found.append((_padded(some), live.peak))
        seconds = _timed(lambda: go(trial))
    return seconds, _extrapolated(found, padded)


def _extrapolated(found: Sequence[tuple[int, int]], padded: int) -> int:
    """Bytes of a batch of so many padded positions, from one or two smaller ones."""
    size, needed = found[-1]
    if len(found) == 1 or found[0][0] == size:
        return int(needed * max(1.0, padded / size))
    slope = max(0.0, (needed - found[0][1]) / (size - found[0][0]))
    return int(needed + slope * max(0, padded - size))


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
