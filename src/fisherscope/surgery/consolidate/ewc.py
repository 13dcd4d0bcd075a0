"""Elastic weight consolidation: a quadratic penalty that keeps old tasks while a new one trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.engine.selection import check_finite
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import Fisher
from fisherscope.structures.fisher import Per
from fisherscope.surgery.consolidate.forms import Form, combined, form_of
from fisherscope.surgery.consolidate.parts import (
    Part,
    Whole,
    fingerprint_below,
    is_adapted,
    parts_of,
)
from fisherscope.surgery.consolidate.shelf import Shelf, Storage

_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class _Term:
    """One quadratic around one anchor."""

    form: Form
    anchor: Mapping[str, Tensor]
    parts: Mapping[str, Part]


class EWC:
    r"""Penalty on moving what old tasks need (Kirkpatrick et al., 2017).

    .. math:: \Omega(\theta) = \frac{\lambda}{2} \sum_k
        (\theta - \theta^*_k)^T F_k\, (\theta - \theta^*_k)

    :math:`F_k` is the Fisher of old task k, a mean per supervised token (which is an example
    for classification and regression), and :math:`\theta^*_k` the weights that it was
    estimated at. So :math:`\frac12 \delta^T F \delta` is the predicted loss increase of the old
    task in nats per token, and :math:`\lambda` is a plain exchange rate: **with** ``strength=1``
    **a nat lost per token of an old task weighs as much as a nat per token of the new task's mean
    loss**, to which the penalty is added. The Bayesian value is :math:`\lambda = N_A / N_B`, the
    ratio of the numbers of old and new tokens: where the old loss is quadratic with this Fisher
    (linear regression), minimising the mean new loss plus the penalty is then training on both
    tasks together. A loss that is a sum instead of a mean needs ``strength`` times its number of
    tokens.

    Nothing is added to the loss, and no graph is built: :meth:`add_gradient` adds
    :math:`\lambda F (\theta - \theta^*)` to ``.grad`` after ``backward()``, one parameter or block
    at a time. The model is never changed otherwise.

    For several tasks in a row, :meth:`consolidate` takes the Fisher of each one as it is finished.
    Without ``decay`` each keeps its own term and anchor (Kirkpatrick et al., 2017); with it there
    is one, :math:`\tilde F_k = \gamma \tilde F_{k-1} + F_k` around the latest weights (Huszár,
    2018; Schwarz et al., 2018), which with :math:`\gamma = 1` is exact for quadratic losses.

    With LoRA (Hu et al., 2022) on the model, the Fisher of the model before counts: the penalty
    is on the merged displacement :math:`\delta = \sum_a s_a B_a A_a`, with exact gradients for A
    and B, and no anchor is kept, as the frozen weights are one.

    Args:
        model: The model that will be trained. It is held, not copied.
        fisher: The Fisher of the old task, or several of tasks that the same weights are for
            (their penalties are added). Every structure will do; parameters that it doesn't
            cover are not penalised.
        strength: :math:`\lambda`, at least 0.
        decay: :math:`\gamma` from 0 to 1 for online EWC. Default: ``None``, separate terms.
        anchor: A model with the weights that the Fisher was estimated at. Default: ``None``,
            ``model`` as it is now.
        per: What F is the mean per: ``"token"``, ``"example"``, ``"unit"`` or ``"sum"``; it
            should be what the training loss is the mean per. Default: ``"token"``.
        storage: Where Fisher and anchor are kept: ``"model"`` (beside the parameters),
            ``"cpu"``, or ``"disk"`` (memory-mapped safetensors). The last two cost a transfer at
            each step. Default: ``"model"``.
        folder: Folder for ``storage="disk"``. Default: ``None``.
        dtype: Type that the Fisher is kept in: ``torch.bfloat16`` (diagonal and grouped ones
            only), ``torch.float32`` or ``torch.float64``. Anchors are kept in the weights' own
            type: a rounded anchor would pull at weights that have not moved. Default: ``None``,
            that of the Fisher's sums.

    Attributes:
        model: The model.
        strength: :math:`\lambda`; may be changed at any time.

    Raises:
        ParameterError: If an option has an unusable value, there is no Fisher, a parameter is
            missing, sharded or of another shape, or adapters are not plain LoRA.
        IdentityError: If a Fisher was estimated at other weights than the anchor's.
        NonFiniteError: If a weight is NaN or infinite.
    """  # noqa: DOC502 (raised by callees)

    @needs_whole
    def __init__(
        self,
        model: nn.Module,
        fisher: Fisher | Sequence[Fisher],
        *,
        strength: float,
        decay: float | None = None,
        anchor: nn.Module | None = None,
        per: Per = "token",
        storage: Storage = "model",
        folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ParameterError(f"model is a {type(model).__name__}, not a torch module.")
        if not (math.isfinite(strength) and strength >= 0):
            raise ParameterError(f"strength={strength!r} must be a finite number of at least 0.")
        if decay is not None and not (math.isfinite(decay) and 0 <= decay <= 1):
            raise ParameterError(f"decay={decay!r} must be a number from 0 to 1, or None.")
        if dtype not in (None, *_DTYPES):
            raise ParameterError(f"dtype={dtype} must be one of {list(_DTYPES)}.")
        self.model, self.strength = model, float(strength)
        self._per: Per = per
        self._decay, self._dtype = decay, dtype
        self._shelf = Shelf(storage, folder)
        self._terms: list[_Term] = []
        self._count = 0
        self.consolidate(fisher, anchor=anchor)

    @torch.no_grad()
    @needs_whole
    def consolidate(
        self, fisher: Fisher | Sequence[Fisher], *, anchor: nn.Module | None = None
    ) -> None:
        """Take in one more finished task.

        Args:
            fisher: Its Fisher, or several, estimated at the weights that the task ended with.
            anchor: A model with these weights. Default: ``None``, the model as it is now.

        Raises:
            ParameterError: As for the class.
            IdentityError: As for the class.
        """  # noqa: DOC502 (raised by callees)
        fishers = [fisher] if isinstance(fisher, Fisher) else list(fisher)
        self._check(fishers, anchor)
        names = dict.fromkeys(n for f in fishers for n in f.identity.parameters)
        parts = parts_of(self.model, names)
        _check_parts(parts, fishers)
        forms = [form_of(f, self._per, parts, self._dtype) for f in fishers]
        weights = [1.0] * len(forms)
        if self._decay is not None and self._terms:
            (before,) = self._terms
            forms, weights = [before.form, *forms], [self._decay, *weights]
            parts = {**before.parts, **parts}
        form = combined(forms, weights)
        where = dict(_devices(form, parts))
        self._count += 1
        kept = self._shelf.keep(f"fisher-{self._count}", form.tensors, where)
        source = self.model if anchor is None else anchor
        own = dict(source.named_parameters(remove_duplicate=False))
        weights_then = {
            n: own[n].detach() if n in own else part.parameter.detach()
            for n, part in parts.items()
            if isinstance(part, Whole)
        }
        devices = {name: parts[name].device for name in weights_then}
        term = _Term(
            Form(form.pieces, kept, form.shapes),
            self._shelf.keep(f"anchor-{self._count}", weights_then, devices),
            parts,
        )
        self._terms = [term] if self._decay is not None else [*self._terms, term]

    def penalty(self) -> float:
        r"""The penalty at the model's present weights.

        Returns:
            :math:`\Omega(\theta)` in nats, 0 at the anchor.
        """
        return self._visit(None)

    def add_gradient(self, *, scale: float = 1.0) -> float:
        r"""Add the penalty's gradient to ``.grad`` of the parameters that require one.

        Call it once per optimizer step, before gradients are clipped.

        Args:
            scale: What it is multiplied by: that of the gradients, where a loss scaler for half
                precision has not been undone yet. Default: ``1.0``.

        Returns:
            The penalty :math:`\Omega(\theta)` in nats, without ``scale``.
        """
        return self._visit(scale)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes that Fishers and anchors take, by the place where they are kept."""
        kept = [m for term in self._terms for m in (term.form.tensors, term.anchor)]
        return self._shelf.nbytes(*kept)

    def __repr__(self) -> str:
        mode = "separate" if self._decay is None else f"online, decay={self._decay}"
        count = sum(math.prod(s) for s in self._terms[-1].form.shapes.values())
        return (
            f"EWC(strength={self.strength}, {mode}, {self._count} consolidated, "
            f"{count} parameters, storage={self._shelf.storage!r})"
        )

    @torch.no_grad()
    def _visit(self, scale: float | None) -> float:
        values: list[Tensor] = []
        for term in self._terms:
            for piece in term.form.pieces:
                # A call for each: two tensors exist at a time, not four.
                values += self._products(term, piece, scale)
        return 0.5 * self.strength * math.fsum(value.item() for value in values)

    def _products(self, term: Any, piece: Any, scale: float | None) -> list[Tensor]:
        values = []
        moved = {
            name: part.displacement(_at(term.anchor, name, part))
            for name in piece.names
            if (part := term.parts.get(name)) is not None
        }
        product = piece.multiply(moved, term.form.tensors, term.form.shapes)
        for name, change in product.items():
            d = moved[name].reshape(-1)
            values.append(torch.dot(d, change.reshape(-1).to(d)))
            if scale is not None and self.strength:
                term.parts[name].add(change, self.strength * scale)
        return values

    def _check(self, fishers: Sequence[Fisher], anchor: nn.Module | None) -> None:
        if not fishers:
            raise ParameterError("fisher is empty; pass fs.estimate(model, old_data).")
        for number, one in enumerate(fishers):
            if not isinstance(one, Fisher):
                raise ParameterError(
                    f"fisher {number} is a {type(one).__name__}, not a Fisher; fs.estimate makes "
                    "one, fs.load reads one."
                )
        if anchor is not None and is_adapted(self.model):
            raise ParameterError(
                "model has adapters, whose frozen weights are the anchor; leave anchor= out."
            )
        source = self.model if anchor is None else anchor
        check_finite(source)
        prints = {model_fingerprint(source)}
        if is_adapted(source):
            if self._terms:
                raise ParameterError(
                    "model has adapters, whose frozen weights are the one anchor: merge them "
                    "(merge_and_unload()) before the next task is consolidated."
                )
            prints.add(fingerprint_below(source))
        for number, one in enumerate(fishers):
            if (held := one.identity.model_fingerprint) not in prints:
                mine = " or ".join(sorted(prints))
                raise IdentityError(
                    f"fisher {number} was estimated at other weights: its model has the "
                    f"fingerprint {held}, this one {mine}. Pass anchor=, the model as it was then, "
                    "or estimate at these weights."
                )


def _at(anchor: Mapping[str, Tensor], name: str, part: Part) -> Tensor:
    return anchor[name].to(part.device) if name in anchor else cast(Tensor, None)


def _devices(form: Form, parts: Mapping[str, Part]):
    for piece in form.pieces:
        device = next(parts[name].device for name in piece.names if name in parts)
        for key in piece.keys:
            yield key, device


def _check_parts(parts: Mapping[str, Part], fishers: Sequence[Fisher]) -> None:
    if not parts:
        raise ParameterError(
            "none of the Fisher's parameters can move: no adapter is on one of them, and none "
            "requires a gradient. Estimate the Fisher on the weights that are trained."
        )
    for fisher in fishers:
        for name, shape in fisher.identity.parameters.items():
            part = parts.get(name)
            if not isinstance(part, Whole):
                continue
            if hasattr(part.parameter, "device_mesh"):
                raise ParameterError(
                    f"{name!r} is sharded (DTensor); the penalty needs whole parameters: use data "
                    "parallelism, or adapters."
                )
            if tuple(part.parameter.shape) != shape:
                raise ParameterError(
                    f"{name!r} has shape {tuple(part.parameter.shape)}, but the Fisher's has "
                    f"{shape}. Pass the model that this Fisher was estimated on."
                )
            if not part.parameter.is_floating_point():
                raise ParameterError(
                    f"{name!r} holds integers (quantised weights), which don't move; use LoRA."
                )
