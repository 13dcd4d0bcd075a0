"""How torch's ``fully_shard`` (FSDP2) splits a model over ranks.

Whoever has split a model has imported what is needed to tell; nobody else has to wait for it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_split(tensor: Any) -> TypeIs[DTensor]:
    """Whether every rank holds a part of a tensor.

    Args:
        tensor: Anything.

    Returns:
        Whether it is a tensor of ``torch.distributed``.
    """
    return isinstance(tensor, _known("torch.distributed.tensor", "DTensor"))


def is_host(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether a module gathers its parameters for its forward pass.

    Args:
        module: Any module.

    Returns:
        Whether ``fully_shard`` was applied to it.
    """
    return isinstance(module, _known("torch.distributed.fsdp", "FSDPModule"))


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made of, before ``fully_shard`` gave it another.

    Args:
        module: Any module.

    Returns:
        Its class.
    """
    hosts = _known("torch.distributed.fsdp", "FSDPModule")
    return next(c for c in type(module).__mro__ if not issubclass(c, hosts))


def is_fully_sharded(tensor: Tensor) -> bool:
    """Whether a tensor was split by ``fully_shard`` alone, perhaps with replicas.

    Args:
        tensor: One that :func:`is_split`.

    Returns:
        Whether it is cut once, along the last dimension of its mesh.
    """
    assert is_split(tensor)
    shards = _known("torch.distributed.tensor", "Shard")
    cut = [isinstance(placement, shards) for placement in tensor.placements]
    return cut[-1] and sum(cut) == 1


def _known(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, ())
