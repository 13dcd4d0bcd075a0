"""From one model to another: the displacement of the weights, adapters merged in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.errors import NonFiniteError, ParameterError


def displacement(base: nn.Module, tuned: nn.Module, *, name: str = "tuned") -> dict[str, Tensor]:
    r"""What fine-tuning has moved: :math:`\delta = \theta_1 - \theta_0`.

    An adapted model (PEFT: LoRA, DoRA, IA³) is merged first, in a copy, so that its displacement
    is that of the base model's own weights. Tied parameters come once, under their first name.

    Args:
        base: The model before.
        tuned: The model after, with the same parameters or with adapters on them.
        name: What to call it in errors. Default: ``"tuned"``.

    Returns:
        Parameter name to displacement, fp32 or better, on the base's device; parameters that
        have not moved are left out, so it is empty where nothing has.

    Raises:
        NonFiniteError: If a weight of ``tuned`` is not finite. A model of another architecture
            raises ``ParameterError``, see :func:`check_alike`.
    """
    after = dict(_merged(tuned).named_parameters())
    before = dict(base.named_parameters())
    check_alike(before, after, names=("base", name))
    moves = {}
    for key, p in before.items():
        q = after[key]
        if not p.is_floating_point():
            continue
        wide = torch.promote_types(p.dtype, torch.float32)
        move = q.detach().to(p.device, wide) - p.detach().to(wide)
        if not bool(torch.isfinite(move).all()):
            raise NonFiniteError(
                f"{key!r} of {name} is not finite: its training has diverged; give an earlier "
                "checkpoint"
            )
        if bool(move.any()):
            moves[key] = move
    return moves


def check_alike(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, names: tuple[str, str]
) -> None:
    """Refuse two models that are not of one architecture.

    Args:
        before: Parameter name to parameter of the one.
        after: The same of the other.
        names: What to call the two in the error.

    Raises:
        ParameterError: If a name or a shape differs; says which one first.
    """
    one, other = names
    unlike = [*(n for n in before if n not in after), *(n for n in after if n not in before)]
    if unlike:
        owner = one if unlike[0] in before else other
        raise ParameterError(
            f"{other} is of another architecture than {one}: {unlike[0]!r} exists in {owner} only "
            f"({len(unlike)} names differ); give two checkpoints of one model"
        )
    for key, p in before.items():
        if p.shape != after[key].shape:
            raise ParameterError(
                f"{other} is of another architecture than {one}: {key!r} has shape "
                f"{tuple(after[key].shape)} there and {tuple(p.shape)} in {one}"
            )


def norm(move: Mapping[str, Tensor]) -> float:
    """Euclidean length of a displacement.

    Args:
        move: Parameter name to displacement.

    Returns:
        Its length.
    """
    return sum(float(t.double().square().sum()) for t in move.values()) ** 0.5


def _merged(model: nn.Module) -> nn.Module:
    merge: Any = getattr(copy.deepcopy(model), "merge_and_unload", None)
    return model if merge is None else merge()
