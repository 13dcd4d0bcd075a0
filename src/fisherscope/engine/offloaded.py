"""What the hooks of accelerate keep in memory or on disk while the layers rest.

Nothing of accelerate is imported: a hook is known by what it holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fisherscope.errors import ParameterError


class Offloaded(NamedTuple):
    """A tensor that a hook of accelerate brings.

    Attributes:
        host: The module with the hook.
        device: Where it is brought to.
        read: Reads it.
        place: Where it lies in memory; ``None`` on a disk.
    """

    host: nn.Module
    device: torch.device
    read: Callable[[], Tensor]
    place: int | None


def offloaded(model: nn.Module) -> dict[tuple[int, str], Offloaded]:
    """What hooks of accelerate bring to where.

    Args:
        model: Any module.

    Returns:
        Identity of a module and local name, to the tensor.
    """
    found: dict[tuple[int, str], Offloaded] = {}
    for host in model.modules():
        outer = getattr(host, "_hf_hook", None)
        hooks: list[Any] = list(getattr(outer, "hooks", (outer,)))
        for hook in hooks:
            weights = getattr(hook, "weights_map", None)
            if weights is None or not getattr(hook, "offload", False):
                continue
            device = torch.device(hook.execution_device)
            inner = host.named_modules() if hook.place_submodules else [("", host)]
            for prefix, module in inner:
                buffers = module._buffers if hook.offload_buffers else {}
                for local, held in {**module._parameters, **buffers}.items():
                    name = f"{prefix}.{local}" if prefix else local
                    if held is not None:
                        read = functools.partial(weights.__getitem__, name)
                        place = _in_memory(weights, name)
                        found[id(module), local] = Offloaded(host, device, read, place)
    return found


def _in_memory(weights: Mapping[str, Tensor], name: str) -> int | None:
    """Where the weights of accelerate's map lie, unless they are on a disk."""
    inner = getattr(weights, "dataset", weights)
    inner = getattr(inner, "state_dict", inner if isinstance(inner, dict) else {})
    tensor = inner.get(f"{getattr(weights, 'prefix', '')}{name}")
    return tensor.data_ptr() if isinstance(tensor, Tensor) and tensor.numel() else None


def tied(model: nn.Module) -> dict[str, str]:
    """Which offloaded parameters are one, although hooks have made two of it.

    Args:
        model: Any module. That a parameter is used twice is known from transformers, and from
            weights that lie in memory once.

    Returns:
        Further name to first name.

    Raises:
        ParameterError: If a part of them is offloaded only.
    """
    known = offloaded(model)
    if not known:
        return {}
    held: dict[str, tuple[Tensor, Offloaded | None]] = {
        f"{prefix}.{local}" if prefix else local: (p, known.get((id(module), local)))
        for prefix, module in model.named_modules(remove_duplicate=False)
        for local, p in module.named_parameters(recurse=False)
    }
    groups: dict[Any, list[str]] = {}
    for name, (_, brought) in held.items():
        if brought is not None and brought.place is not None:
            groups.setdefault(brought.place, []).append(name)
    found = {further: first for first, *more in groups.values() for further in more}
    for further, first in getattr(model, "all_tied_weights_keys", {}).items():
        if not {further, first} <= set(held):
            continue
        both = [name for name in held if name in (further, first)]
        if held[first][0] is held[further][0] or both[1] in found:
            continue
        away = [held[name][0].device.type == "meta" for name in both]
        if all(away):
            found[both[1]] = both[0]
        elif any(away):
            raise ParameterError(
                f"parameters {both[0]!r} and {both[1]!r} are one, but only one of them is "
                "offloaded: give both the same place in device_map"
            )
    return found
