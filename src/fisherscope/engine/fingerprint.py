"""A short name for the weights of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fisherscope.engine.away import state

_SAMPLES = 65536


def model_fingerprint(model: nn.Module) -> str:
    """Hash of a model's weights and persistent buffers.

    Names, types, shapes, the float64 sum of each tensor, and its bytes (of 65,536 evenly
    spaced entries where it is larger) go in, so a 7B model takes a second or two. A model that is
    sharded or offloaded has the fingerprint that it has whole; if it is sharded, every rank has
    to ask for it.

    Args:
        model: Any module.

    Returns:
        32 hexadecimal digits.
    """
    return state_fingerprint(state(model))


def state_fingerprint(held: Mapping[str, Any]) -> str:
    """Hash of weights and persistent buffers; :func:`model_fingerprint` of the model they are of.

    Args:
        held: What ``state_dict()`` gave; entries that are no tensors don't count.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(held):
        tensor = held[name]
        if not isinstance(tensor, torch.Tensor):
            continue
        flat = tensor.detach().reshape(-1)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if flat.is_floating_point():
            digest.update(f"{float(flat.sum(dtype=torch.float64))!r}|".encode())
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()
