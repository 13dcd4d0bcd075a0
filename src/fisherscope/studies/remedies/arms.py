"""What is done differently in each fine-tuning, and what each remedy is held against."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = "plain"
EWC, L2 = "ewc", "l2"
FREEZE, FREEZE_RANDOM = "freeze", "freeze_random"
MASK, MASK_RANDOM = "mask", "mask_random"
LORA, LORA_RANDOM = "lora", "lora_random"
# A remedy and its null.
NULLS = {EWC: L2, FREEZE: FREEZE_RANDOM, MASK: MASK_RANDOM, LORA: LORA_RANDOM}
REMEDIES = tuple(NULLS)
LABELS = {
    PLAIN: "plain fine-tuning",
    EWC: "EWC",
    L2: "L2 of the same trace",
    FREEZE: "top Fisher frozen",
    FREEZE_RANDOM: "as many random ones frozen",
    MASK: "Fisher-ratio mask",
    MASK_RANDOM: "random mask of the same size",
    LORA: "LoRA, least interfering",
    LORA_RANDOM: "LoRA, random modules",
}


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How much of each remedy; all chosen beforehand, none by its result.

    Attributes:
        strength: Exchange rate of EWC and L2, see :class:`fisherscope.EWC`.
        freeze_share: Share of coordinates that are frozen, those with the largest Fisher of the
            old tasks.
        mask_share: Share of coordinates that may move, those with the largest ratio of the new
            task's Fisher to the old tasks'.
        scope: ``"global"`` (shares of the whole model) or ``"tensor"`` (of each tensor).
        lora_share: Share of linear layers that get an adapter.
        lora_rank: Rank of the adapters; their scaling is 2 (alpha is twice the rank).
        lora_rate: What the learning rate is multiplied by for adapters, which need a larger one
            (ten times as large in Biderman et al., 2024, and in most recipes).
    """

    strength: float = 10.0
    freeze_share: float = 0.1
    mask_share: float = 0.1
    scope: str = "global"
    lora_share: float = 0.25
    lora_rank: int = 8
    lora_rate: float = 10.0


STRENGTHS = Strengths()
