"""CPU time of one pass of each estimate, as a ratio to one training step on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import CLOCKS, interleave
from transformers import LlamaForCausalLM

from choosing.estimates import ESTIMATES, Options
from choosing.structures import STRUCTURES
from fisherscope.data import Example, collate
from fisherscope.defaults import FisherConfig
from fisherscope.passes import Pass
from fisherscope.preparation import prepare, settled
from fisherscope.structures import Fisher, KFACFisher


def one_pass(
    model: LlamaForCausalLM, data: Sequence[Example], options: Options
) -> Callable[[], Fisher]:
    """An estimate whose checks and plan are made beforehand: once for any number of rows."""
    prepared = prepare(model, list(data), FisherConfig(**options))
    if options.get("structure") != "ekfac":
        return lambda: settled(prepared, lambda p: Pass(p, data, None, False, "").finish())
    factors = one_pass(model, data, {**options, "structure": "kfac"})

    def both() -> Fisher:
        basis = factors()
        assert isinstance(basis, KFACFisher)
        return settled(prepared, lambda p: Pass(p, data, None, False, "", basis).finish())

    return both


def costs(
    model: LlamaForCausalLM, data: Sequence[Example], repeats: int
) -> dict[str, dict[str, Any]]:
    """Every estimate and every structure with the data's labels, by name."""
    batch = collate(list(data))

    def plain() -> None:
        with torch.enable_grad():
            batch.call(model, labels=batch.labels, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    named = {name: options for name, (options, _) in ESTIMATES.items()}
    named |= {name: {"structure": name} for name in STRUCTURES}
    passes = {name: one_pass(model, data, options) for name, options in named.items()}
    timings, base = interleave(plain, passes, repeats, 1, CLOCKS["cpu"])
    found = {name: timing.summary() for name, timing in timings.items()}
    for name in STRUCTURES:
        found[name]["numbers"] = sum(t.numel() for t in passes[name]().sums.values())
    base.sort()
    found["plain step"] = {"seconds": base[len(base) // 2]}
    return found
