"""Where a Fisher's parameter is in the model that trains: a weight, or adapters on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.engine.fingerprint import state_fingerprint
from fisherscope.errors import ParameterError

_PREFIX = "base_model.model."
_SHOWN = 5


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 or better; differences of half-precision weights need it.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        The tensor itself, or a copy in float32.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Whole:
    """A weight that is trained itself.

    Attributes:
        parameter: The weight.
    """

    parameter: nn.Parameter

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.parameter.device

    def displacement(self, anchor: Tensor) -> Tensor:
        """How far the weight is from its anchor.

        Args:
            anchor: The weight as it was, on the weight's device.

        Returns:
            A new tensor, in float32 or better.
        """
        return wide(self.parameter.detach()) - anchor

    def add(self, gradient: Tensor, factor: float) -> None:
        """Add to ``.grad`` what a gradient with respect to the weight means for it.

        Args:
            gradient: The gradient.
            factor: What it is multiplied by.
        """
        _accumulate(self.parameter, gradient, factor)


@dataclass(frozen=True, eq=False)
class Adapted:
    r"""A frozen weight W with LoRA (Hu et al. 2022): :math:`W + \sum_a s_a B_a A_a`.

    Attributes:
        layer: PEFT's layer; its adapters that are active when it is asked count.
    """

    layer: Any

    @property
    def device(self) -> torch.device:
        """Where the frozen weight is."""
        return self.layer.base_layer.weight.device

    def displacement(self, anchor: Tensor | None) -> Tensor:
        """The sum of the adapters' products.

        Args:
            anchor: Unused: the frozen weight is where it was.

        Returns:
            A new tensor of the weight's shape, in float32 or better.
        """
        del anchor
        shape = (self.layer.out_features, self.layer.in_features)
        moved = torch.zeros(shape, device=self.device)
        for scaling, a, b in self._adapters():
            moved = moved + scaling * (wide(b.detach()) @ wide(a.detach()))
        return self._oriented(moved)

    def add(self, gradient: Tensor, factor: float) -> None:
        r"""Add to both matrices' ``.grad``: :math:`s D A^T` to B's and :math:`s B^T D` to A's.

        Args:
            gradient: The gradient D with respect to the weight.
            factor: What it is multiplied by.
        """
        d = self._oriented(gradient)
        for scaling, a, b in self._adapters():
            _accumulate(b, d @ wide(a.detach()).to(d).T, factor * scaling)
            _accumulate(a, wide(b.detach()).to(d).T @ d, factor * scaling)

    def _adapters(self) -> list[tuple[float, nn.Parameter, nn.Parameter]]:
        layer = self.layer
        return [
            (float(layer.scaling[n]), layer.lora_A[n].weight, layer.lora_B[n].weight)
            for n in layer.active_adapters
            if n in layer.lora_A
        ]

    # [out, in], whatever the layer stores.
    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.T if getattr(self.layer, "fan_in_fan_out", False) else weight


Part = Whole | Adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether layers of a model are wrapped, as PEFT does it.

    Args:
        model: The model.

    Returns:
        Whether any is.
    """
    return any(hasattr(module, "base_layer") for module in model.modules())


def fingerprint_below(model: nn.Module) -> str:
    """The fingerprint that a model with adapters had before it got them.

    Args:
        model: The model.

    Returns:
        :func:`fisherscope.engine.fingerprint.model_fingerprint` of the model without.
    """
    state = model.state_dict(keep_vars=False)
    return state_fingerprint({_below(name): t for name, t in state.items() if not _added(name)})


def parts_of(model: nn.Module, names: Collection[str]) -> dict[str, Part]:
    """Find parameters of a Fisher in a model.

    Args:
        model: The model, with the Fisher's parameters, or with LoRA on some of them.
        names: The Fisher's parameters.

    Returns:
        Name to part; with adapters only those that can move.

    Raises:
        ParameterError: If a parameter is not there, or an adapter moves a weight in a way that
            is not known here.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    if all(name in own for name in names):
        return {name: Whole(own[name]) for name in names}
    below = {_below(n): n for n in own if not _added(n)} if is_adapted(model) else {}
    if missing := [name for name in names if name not in below]:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ParameterError(
            f"model does not have the Fisher's parameters {', '.join(map(repr, missing[:_SHOWN]))}"
            f"{more}. Pass the model that the Fisher was estimated on, or one with LoRA on it."
        )
    # By the tensor, not by its name: the adapter may be on another use of a tied weight.
    wrapped = {
        id(weight): module
        for module in model.modules()
        if (weight := getattr(getattr(module, "base_layer", None), "weight", None)) is not None
    }
    uses = Counter(map(id, own.values()))
    parts: dict[str, Part] = {}
    for name in names:
        parameter = own[below[name]]
        if below[name].rpartition(".")[0].endswith(".original_module"):
            raise ParameterError(
                f"{name!r} is trained as a copy (modules_to_save), whose distance from the "
                "original is not known here; leave it out of modules_to_save."
            )
        if id(parameter) in wrapped:
            layer = wrapped[id(parameter)]
            _check_layer(name, layer, tied=uses[id(parameter)] > 1)
            parts[name] = Adapted(layer)
        elif parameter.requires_grad:
            parts[name] = Whole(parameter)
    return parts


def _check_layer(name: str, layer: Any, *, tied: bool) -> None:
    wrong = ""
    if not hasattr(layer, "lora_A"):
        wrong = f"a {type(layer).__name__}, which is not LoRA"
    elif tied:
        wrong = "LoRA on a tied weight: it moves one use of it only, which this Fisher is not of"
    elif getattr(layer, "merged", False):
        wrong = "LoRA merged into the weight (call unmerge_adapter() first)"
    elif any(getattr(layer, "lora_bias", {}).values()):
        wrong = "LoRA with a bias"
    elif any(v is not None for v in getattr(layer, "lora_variant", {}).values()):
        wrong = "a variant of LoRA (DoRA or another)"
    elif len(layer.lora_embedding_A) or not all(
        isinstance(a, nn.Linear) for a in layer.lora_A.values()
    ):
        wrong = "LoRA on another layer than a linear one"
    if wrong:
        raise ParameterError(
            f"the adapter of {name!r} is {wrong}; the penalty knows plain LoRA on linear layers. "
            "Adapt other modules, or estimate the Fisher on the adapted model itself, at its "
            "adapters' weights."
        )


def _added(name: str) -> bool:
    parts = name.split(".")
    return "modules_to_save" in parts or any(part.startswith("lora_") for part in parts)


def _below(name: str) -> str:
    parts = name.removeprefix(_PREFIX).split(".")
    return ".".join(part for part in parts if part not in {"base_layer", "original_module"})


def _accumulate(parameter: nn.Parameter, gradient: Tensor, factor: float) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=factor)
