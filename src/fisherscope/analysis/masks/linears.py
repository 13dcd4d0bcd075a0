"""The linear layers of a model, with the names of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer.

    Attributes:
        weight: Name of the weight as in ``model.named_parameters()``; of a tied one the first.
        bias: Name of the bias, ``None`` without one.
        outputs: Number of outputs.
        inputs: Number of inputs.
        transposed: Whether the weight is stored as ``[in, out]``, as in ``Conv1D``.
    """

    weight: str
    bias: str | None
    outputs: int
    inputs: int
    transposed: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Its parameters."""
        return (self.weight, self.bias) if self.bias else (self.weight,)


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """All linear layers: ``nn.Linear``, ``Conv1D`` and their subclasses.

    Args:
        model: Any model.

    Returns:
        Name of the module to the layer, in the model's order; a module of several names under
        each of them.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in names:
            first, second = module.weight.shape
            transposed = isinstance(module, Conv1D)
            found[path] = LinearLayer(
                names[id(module.weight)],
                names.get(id(module.bias)) if module.bias is not None else None,
                *((second, first) if transposed else (first, second)),
                transposed,
            )
    return found
