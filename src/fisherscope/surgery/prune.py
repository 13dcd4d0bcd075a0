"""Weights set to zero, and kept there."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fisherscope.arguments import check_mapping
from fisherscope.engine.named import by_first_name, first_names
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.results import Result

Masks = Mapping[str, Tensor]


@needs_whole
@torch.no_grad()
def prune(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a model with the masked weights set to zero.

    The copy has the shapes of the model: it loads and runs as before, no faster.

    Args:
        model: The model; it stays as it is.
        masks: Parameter name to boolean tensor of the parameter's shape, true = keep, as
            :func:`fisherscope.masks` makes them. A tied parameter may come under any of its
            names; it is pruned once.

    Returns:
        The pruned model, without gradients.

    Raises:
        ParameterError: If there are no masks, or one has an unknown name, another shape or type
            than boolean, or belongs to integers.
    """  # noqa: DOC502 (raised by callees)
    keep = _checked(model, masks)
    pruned = copy.deepcopy(model)
    pruned.zero_grad(set_to_none=True)
    parameters = dict(pruned.named_parameters())
    for name, mask in keep.items():
        _zero(parameters[name], mask.to(parameters[name].device))
    return pruned


@needs_whole
@contextmanager
def keep_pruned(model: nn.Module, masks: Masks) -> Generator[None]:
    """Keep pruned weights at zero while the model is trained inside of ``with``.

    Their gradients are zeroed as soon as they are computed, so that they count neither for
    clipping nor for the optimizer's moments; and after every step of any optimizer that holds
    them the weights are set to zero, whatever momentum or weight decay did.

    Args:
        model: A pruned model, which is trained in place.
        masks: The masks it was pruned with.

    Yields:
        Nothing.

    Raises:
        ParameterError: As :func:`prune` does; also if a masked weight is not zero at the start.
    """
    keep = _checked(model, masks)
    parameters = dict(model.named_parameters())
    held = {parameters[name]: mask.to(parameters[name].device) for name, mask in keep.items()}
    for name, mask in keep.items():
        left = parameters[name].detach()[~held[parameters[name]]]
        if nonzero := int(torch.count_nonzero(left)):
            raise ParameterError(
                f"{nonzero} weights of {name!r} that the masks remove are not zero; train the "
                f"model that prune() returned ({int((~mask).sum())} are to be removed)."
            )

    @torch.no_grad()
    def restore(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in held:
                    _zero(parameter, held[parameter])

    with ExitStack() as stack:
        for parameter, mask in held.items():
            if parameter.requires_grad:
                stack.callback(parameter.register_hook(_masking(mask)).remove)
        stack.callback(register_optimizer_step_post_hook(restore).remove)
        yield


@dataclass(frozen=True)
class Sparsity(Result):
    """How many weights are zero.

    Attributes:
        n_parameters: Number of weights, tied ones once.
        zeros: How many of them are zero.
        table: One row per tensor: ``tensor``, ``n_parameters``, ``zeros``, ``sparsity``.
    """

    n_parameters: int
    zeros: int
    table: pd.DataFrame

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among all weights."""
        return self.zeros / self.n_parameters if self.n_parameters else 0.0

    def to_frame(self) -> pd.DataFrame:
        """The counts per tensor.

        Returns:
            A copy of ``table``.
        """
        return self.table.copy()


@needs_whole
def sparsity(model: nn.Module) -> Sparsity:
    """Count the weights that are zero.

    Args:
        model: Any module.

    Returns:
        The counts per tensor and in all.
    """
    counts = {
        name: (p.numel(), p.numel() - int(torch.count_nonzero(p)))
        for name, p in model.named_parameters()
    }
    rows = [
        (name, size, zeros, zeros / size if size else 0.0) for name, (size, zeros) in counts.items()
    ]
    table = pd.DataFrame(rows, columns=pd.Index(["tensor", "n_parameters", "zeros", "sparsity"]))
    return Sparsity(sum(n for n, _ in counts.values()), sum(z for _, z in counts.values()), table)


def _checked(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    check_mapping("masks", masks, "{parameter name: boolean tensor}, true = keep")
    if not masks:
        raise ParameterError("masks is empty; fs.masks(fisher, sparsity) makes some.")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ParameterError(
                f"the mask of {name!r} is {kind}; masks are boolean tensors, true = keep."
            )
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    keep = by_first_name(masks, shapes, first_names(model, parameters), "masks has")
    if integers := [name for name in keep if not parameters[name].is_floating_point()]:
        raise ParameterError(
            f"{integers[0]!r} holds integers (quantised weights), in which zero means something "
            "else; load the model unquantised."
        )
    return keep


# Where, not a product: a weight that is NaN or infinite becomes zero as well.
def _zero(parameter: Tensor, mask: Tensor) -> None:
    parameter.copy_(torch.where(mask, parameter, 0))


def _masking(mask: Tensor) -> Any:
    return lambda gradient: torch.where(mask, gradient, 0)
