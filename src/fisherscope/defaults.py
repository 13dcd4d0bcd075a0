"""The one set of defaults, used by every entry point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fisherscope.naming import Selection
from fisherscope.specs import Spec

FisherType = Literal["empirical", "mc", "type-2"]
Sampling = Literal["labels", "signs"]
Unit = Literal["example", "token", "position", "batch"]
OnNonFinite = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    """How a Fisher is estimated; frozen, shared by functions, classes and command line.

    Attributes:
        structure: How much of the matrix is kept: ``"diagonal"``, ``"grouped"``, ``"block"``,
            ``"dense"``, ``"kfac"`` or ``"ekfac"``, with options as text or as a spec such as
            :class:`fisherscope.KFAC`.
        fisher_type: Where labels come from, ``"empirical"`` (the data's), ``"mc"`` (drawn
            from the model) or ``"type-2"`` (exact expectation over the model's labels).
        unit: What counts as one independent observation: ``"example"``, ``"token"``,
            ``"position"``, or for drawn labels ``"batch"``.
        parameters: Globs, regular expressions, layer ranges or predicates, see
            :func:`fisherscope.engine.selection.select`; ``None`` takes all.
        likelihood: ``"auto"``, ``"causal-lm"``, ``"masked-lm"``, ``"classification"``
            or ``"regression"``.
        draws: Label draws per example; used by ``"mc"`` only.
        sampling: What a draw is: a label of the model (``"labels"``), or random signs on
            the root of the Fisher of its outputs (``"signs"``).
        seed: Keys every sampled label together with example id and position.
        batch_size: Examples per pass; ``None`` packs batches to a budget of tokens.
        max_examples: Use the first so many examples; ``None`` takes all.
        halves: Also keep two estimates from disjoint halves of the examples.
        on_nonfinite: ``"raise"`` or ``"skip"`` (counted and reported).
        ema_decay: Decay of :class:`fisherscope.FisherEMA`.
    """

    structure: str | Spec = "diagonal"
    fisher_type: FisherType = "empirical"
    unit: Unit = "example"
    parameters: Selection = None
    likelihood: str = "auto"
    draws: int = 1
    sampling: Sampling = "labels"
    seed: int = 0
    batch_size: int | None = None
    max_examples: int | None = None
    halves: bool = False
    on_nonfinite: OnNonFinite = "raise"
    ema_decay: float = 0.99


DEFAULTS = FisherConfig()
