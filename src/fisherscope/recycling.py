"""``from_optimizer()``: the squared gradients that an optimizer has kept anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn, optim

from fisherscope.engine.selection import select
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.naming import Selection
from fisherscope.results import Result, plain
from fisherscope.structures.vectors import total

_SHOWN = 5
_Decay = Callable[[Mapping[str, Any]], float]
_BETA2: _Decay = lambda group: float(group["betas"][1])  # noqa: E731
# Where each optimizer keeps its squares, and how fast it forgets them; None: it adds them up.
_KEPT: dict[type, tuple[str, _Decay | None]] = {
    optim.Adam: ("exp_avg_sq", _BETA2),
    optim.AdamW: ("exp_avg_sq", _BETA2),
    optim.NAdam: ("exp_avg_sq", _BETA2),
    optim.RAdam: ("exp_avg_sq", _BETA2),
    optim.RMSprop: ("square_avg", lambda group: float(group["alpha"])),
    optim.Adadelta: ("square_avg", lambda group: float(group["rho"])),
    optim.Adagrad: ("sum", None),
}
_UNUSABLE = {
    "Adamax": "keeps a decayed maximum of absolute gradients (exp_inf), which is no mean square",
    "Adafactor": "keeps only sums over rows and columns of the squared gradients",
    "SparseAdam": "forgets only where a gradient arrives, so its rows have windows of their own",
}


@dataclass(frozen=True, eq=False)
class SquaredGradients(Result):
    r"""Squared batch gradients that an optimizer has accumulated: not a Fisher.

    Adam keeps :math:`v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2` with :math:`g_t` the
    gradient that it was given. That is a mean over the last steps of the *squared gradient of
    a batch's loss*, after clipping, at the weights of each step. A Fisher is the mean over
    examples of the *squared score of one example*, at the weights of now. Where the mean
    gradient vanishes the former is about the B-th part of the latter for a batch of B
    examples; elsewhere the squared mean gradient comes on top. So it says something about the
    ratios between parameters, at no cost, and nothing about their size:
    :func:`fisherscope.compare_recycled` shows how much on the model at hand.

    A snapshot: the optimizer may go on.

    Attributes:
        optimizer: Name of the optimizer's class.
        accumulated: Parameter name to the accumulator as the optimizer keeps it, on the CPU,
            in fp32 or better.
        steps: Parameter name to the number of its steps.
        beta2: Parameter name to the factor by which every step forgets the earlier ones;
            ``None`` where they are summed.
        missing: Parameter name to the reason why the optimizer has nothing of it.
        weight_decay: Parameter name to the factor of the L2 penalty that is within its
            gradients; 0 where there is none or where it is decoupled.

    Source:
        Li, Dangel, Tam, Raffel: Fishers for free? Approximating the Fisher information matrix
        by recycling the squared gradient accumulator (ICML 2025).
    """

    optimizer: str
    accumulated: dict[str, Tensor]
    steps: dict[str, int]
    beta2: dict[str, float | None]
    missing: dict[str, str]
    weight_decay: dict[str, float]

    def diagonal(self) -> dict[str, Tensor]:
        r"""The mean squared gradient per step.

        Returns:
            Parameter name to a new tensor of the parameter's shape: :math:`v_t / (1 -
            \beta_2^t)`, which takes out the bias of having started from zero, also where the
            optimizer itself does not (RMSprop, Adadelta); the sum over the number of steps
            for Adagrad.
        """
        return {name: v / self._weight(name) for name, v in self.accumulated.items()}

    def window(self, name: str) -> float:
        r"""Over about how many of the last steps the mean goes.

        Args:
            name: Of a parameter.

        Returns:
            :math:`1 / (1 - \beta_2)`, or all steps if there were fewer.
        """
        beta2 = self.beta2[name]
        return self.steps[name] if beta2 is None else min(self.steps[name], 1 / (1 - beta2))

    @property
    def what(self) -> str:
        """In words what these numbers are."""
        windows = sorted({round(self.window(name)) for name in self.steps})
        over = "–".join(str(w) for w in dict.fromkeys([windows[0], windows[-1]]))
        text = (
            f"squared batch gradients as {self.optimizer} was given them (mean over the batch, "
            f"clipped if they were), averaged over about the last {over} steps while the weights "
            "moved; not a Fisher"
        )
        decayed = [name for name, factor in self.weight_decay.items() if factor]
        if decayed:
            text += (
                f"; the gradients of {len(decayed)} tensors hold weight decay, which "
                f"{self.optimizer} adds before it squares"
            )
        return text

    def to_frame(self) -> pd.DataFrame:
        """One row per tensor.

        Returns:
            Columns ``tensor``, ``n_parameters``, ``steps``, ``beta2`` (NaN where squares are
            summed), ``window``, ``trace`` and ``mean`` of the corrected squares.
        """
        rows = []
        for name, v in self.accumulated.items():
            trace = total(v) / self._weight(name)
            rows.append({
                "tensor": name,
                "n_parameters": v.numel(),
                "steps": self.steps[name],
                "beta2": self.beta2[name],
                "window": self.window(name),
                "trace": trace,
                "mean": trace / v.numel(),
            })
        return pd.DataFrame(rows).astype({"beta2": float})

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors themselves.

        Returns:
            Field name to value, ready for JSON, with ``what`` and the rows of
            :meth:`to_frame` as ``tensors``.
        """
        names = [f.name for f in fields(self) if f.name != "accumulated"]
        found = {name: plain(getattr(self, name)) for name in names}
        return {"what": self.what, **found, "tensors": plain(self.to_frame())}

    def __repr__(self) -> str:
        return f"SquaredGradients({len(self.accumulated)} tensors: {self.what})"

    def _weight(self, name: str) -> float:
        beta2 = self.beta2[name]
        return self.steps[name] if beta2 is None else 1 - beta2 ** self.steps[name]


@needs_whole
def from_optimizer(
    optimizer: Any, model: nn.Module, *, parameters: Selection = None
) -> SquaredGradients:
    """Read the squared gradients that an optimizer has accumulated for a model.

    Epsilon and decoupled weight decay (AdamW) are not in them; gradient clipping is, and so is
    the L2 penalty of an ``Adam(weight_decay=…)``, which :attr:`SquaredGradients.weight_decay`
    reports. Of ``amsgrad`` the mean is read, not the maximum, of a centered RMSprop the second
    moment about zero.

    Args:
        optimizer: ``Adam``, ``AdamW``, ``NAdam``, ``RAdam``, ``RMSprop``, ``Adadelta`` or
            ``Adagrad`` of ``torch.optim`` after at least one step, or what holds one as its
            ``.optimizer`` (of accelerate, of a ``Trainer``). It comes back untouched.
        model: The model that it trains; a wrapped one (PEFT) may have more parameters.
        parameters: Which of them, as in :func:`fisherscope.estimate`. Default: ``None``, all
            that the optimizer has stepped; what is frozen, or never had a gradient, is then
            named in ``missing``.

    Returns:
        The squares of each parameter, tied ones once under their first name. An accumulator
        that holds NaN or infinite values raises :class:`NonFiniteError`.

    Raises:
        ParameterError: If the optimizer is of another kind, was never stepped, does not own a
            parameter that is requested or requires grad, has nothing of a requested one, or
            keeps one sharded, quantised or in another shape.
    """
    inner = _unwrapped(optimizer)
    key, decay = _kept(inner)
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    wanted = select(model, parameters)
    foreign = [name for name, p in wanted.items() if id(p) not in groups]
    refused = [name for name in foreign if parameters is not None or wanted[name].requires_grad]
    if refused or len(foreign) == len(wanted):
        raise ParameterError(
            f"the {type(inner).__name__} does not step {_some(refused or foreign)}: pass the model "
            "whose parameters() it was made of (one that was loaded, copied or sharded later has "
            "others), or name those that it steps in parameters="
        )
    missing = dict.fromkeys(foreign, "frozen, not in the optimizer")
    # Not state[p]: the state is a defaultdict, and looking would leave an entry.
    states = {n: inner.state.get(p, {}) for n, p in wanted.items() if n not in missing}
    steps = {name: int(float(state.get("step", 0))) for name, state in states.items()}
    if not any(steps.values()):
        raise ParameterError(
            f"the {type(inner).__name__} has not stepped {_some(list(states))} yet: nothing is "
            "accumulated before the first step(); train, or load its state_dict()"
        )
    idle = [name for name, count in steps.items() if not count]
    if idle and parameters is not None:
        raise ParameterError(
            f"{_some(idle)} never had a gradient, so the {type(inner).__name__} has nothing of "
            "them: leave them out of parameters="
        )
    missing |= dict.fromkeys(idle, "never had a gradient")
    found = {n: _read(n, wanted[n], states[n][key]) for n, count in steps.items() if count}
    mine = {name: groups[id(wanted[name])] for name in found}
    if decay is None:
        for name, group in mine.items():
            found[name] -= float(group.get("initial_accumulator_value", 0.0))
            found[name].clamp_(min=0)
    return SquaredGradients(
        optimizer=type(inner).__name__,
        accumulated=found,
        steps={name: steps[name] for name in found},
        beta2={name: None if decay is None else decay(group) for name, group in mine.items()},
        missing=missing,
        weight_decay={name: _penalty(inner, group) for name, group in mine.items()},
    )


def _unwrapped(optimizer: Any) -> optim.Optimizer:
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    if isinstance(optimizer, optim.Optimizer):
        return optimizer
    raise ParameterError(
        f"{type(optimizer).__name__} is no optimizer: pass the torch.optim object that trains the "
        "model"
    )


def _kept(optimizer: optim.Optimizer) -> tuple[str, _Decay | None]:
    for kind in type(optimizer).__mro__:
        if kind in _KEPT:
            return _KEPT[kind]
    name = type(optimizer).__name__
    if type(optimizer).__module__.startswith("bitsandbytes"):
        reason = "keeps its second moment quantised or in a layout of its own (bitsandbytes)"
    else:
        reason = _UNUSABLE.get(name, "keeps no mean of squared gradients that is known here")
    known = ", ".join(kind.__name__ for kind in _KEPT)
    raise ParameterError(
        f"{name} {reason}; train with one of {known} of torch.optim (a few hundred steps are "
        "enough to fill AdamW's), or use estimate(), which needs no optimizer"
    )


def _read(name: str, parameter: nn.Parameter, kept: Tensor) -> Tensor:
    # Shards and quantised states are subclasses of Tensor.
    if type(kept) is not Tensor or kept.shape != parameter.shape or not kept.is_floating_point():
        raise ParameterError(
            f"the optimizer keeps {name!r} as {type(kept).__name__} of {kept.dtype} and shape "
            f"{tuple(kept.shape)}, the parameter has {tuple(parameter.shape)}: its state is "
            "sharded, quantised or of reduced rank, and is no diagonal; use estimate()"
        )
    wide = torch.promote_types(kept.dtype, torch.float32)
    values = kept.detach().to(device="cpu", dtype=wide, copy=True)
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"the squared gradients of {name!r} are not finite: a step had a gradient of NaN or "
            "inf; train on, or use an earlier checkpoint of the optimizer"
        )
    return values


def _penalty(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> float:
    decoupled = isinstance(optimizer, optim.AdamW) or group.get("decoupled_weight_decay", False)
    return 0.0 if decoupled else float(group.get("weight_decay", 0.0))


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
