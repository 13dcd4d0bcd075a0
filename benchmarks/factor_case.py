"""What the benchmark of Kronecker factors measures: four stages of each library, checked.

A :class:`Library` owns one model. Its stages build on each other: covariances, their
eigendecomposition, eigenvalues fitted in that basis. :meth:`Library.layers` gives the last
run's results in one convention, so that all libraries meet the same reference in float64.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from case import Case
from models import Shape
from torch import Tensor

STAGES = ("covariances", "eigenvectors", "eigenvalues")


@dataclass
class Factors:
    """One layer, weights seen as [out, in], a bias as the last column.

    Attributes:
        inputs: ``Σ a aᵀ`` over supervised rows.
        gradients: ``Σ g gᵀ`` over the same rows.
        input_vectors: Eigenvectors of ``inputs`` in the columns.
        gradient_vectors: Eigenvectors of ``gradients`` in the columns.
        eigenvalues: ``Σ_n (Qᵀ G_n R)²`` over examples.
    """

    inputs: Tensor
    gradients: Tensor
    input_vectors: Tensor
    gradient_vectors: Tensor
    eigenvalues: Tensor


class Library(ABC):
    """One library, ready to run on one model and batch.

    Args:
        case: Model and batch; owned by the library.
        layers: Names of the modules that get factors.

    Attributes:
        cases: A view of the case for each stage, with a chunk size of its own.
    """

    chunked: tuple[str, ...] = ()

    def __init__(self, case: Case, layers: list[str]):
        self.case, self.names = case, layers
        self.cases = {stage: dataclasses.replace(case) for stage in STAGES}

    @abstractmethod
    def covariances(self) -> None:
        """Both Kronecker factors of every layer, one pass."""

    @abstractmethod
    def eigenvectors(self) -> None:
        """Decompose the factors."""

    @abstractmethod
    def eigenvalues(self) -> None:
        """Fit the eigenvalues in the eigenbasis, one pass."""

    @abstractmethod
    def layers(self) -> dict[str, Factors]:
        """Results of the last runs."""

    def stage(self, name: str) -> Callable[[], None]:
        """The function that runs one stage."""
        return getattr(self, name)


def factored_layers(shape: Shape, model: nn.Module, head: bool) -> list[str]:
    """Names of all linear and convolution layers; the output head only if asked for."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Conv2d, Conv1D)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and (head or name != "lm_head")
    ]


def vector(model: nn.Module, seed: int = 11) -> dict[str, Tensor]:
    """The direction that a Fisher–vector product is taken along."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


class Reference:
    """The same quantities in float64 by the definitions: hooks for rows, a loop for examples.

    Args:
        case: Model and batch; the model becomes float64.
        layers: Names of the modules.
    """

    def __init__(self, case: Case, layers: list[str]):
        case.model.double()
        self.case, self.modules = case, {n: case.model.get_submodule(n) for n in layers}

    def _x(self) -> Tensor:
        return self.case.x if self.case.shape.is_lm else self.case.x.double()

    def covariances(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer to ``Σ a aᵀ`` and ``Σ g gᵀ``."""
        rows: dict[str, list[Tensor]] = {}
        handles = []
        for name, module in self.modules.items():

            def keep(module, inputs, output, name=name):
                rows[name] = [_input_rows(module, inputs[0].detach())]
                output.register_hook(lambda g: rows[name].append(_gradient_rows(module, g)))

            handles.append(module.register_forward_hook(keep))
        self.case.loss(self._x(), self.case.y).backward()
        for handle in handles:
            handle.remove()
        self.case.model.zero_grad(set_to_none=True)
        # The last position of a row has no label to predict: no gradient gets there.
        last = -1 if self.case.shape.is_lm else None
        found = {}
        for name, (a, g) in rows.items():
            a, g = a[:, :last].flatten(0, 1), g[:, :last].flatten(0, 1)
            found[name] = (a.t() @ a, g.t() @ g)
        return found

    def eigenvalues(self, bases: dict[str, dict[str, Factors]]) -> dict[str, dict[str, Tensor]]:
        """Eigenvalues in each library's own basis, from autograd example by example."""
        sums: dict[str, dict[str, Tensor]] = {library: {} for library in bases}
        weights = {f"{n}.{k}": p for n, m in self.modules.items() for k, p in m.named_parameters()}
        for x, y in zip(self._x().split(1), self.case.y.split(1), strict=True):
            gradients = torch.autograd.grad(self.case.loss(x, y), list(weights.values()))
            found = dict(zip(weights, gradients, strict=True))
            for name, module in self.modules.items():
                score = found[f"{name}.weight"]
                score = score.t() if _transposed(module) else score.flatten(1)
                if f"{name}.bias" in found:
                    score = torch.cat([score, found[f"{name}.bias"].unsqueeze(1)], 1)
                for library, layers in bases.items():
                    basis = layers[name]
                    q, r = basis.gradient_vectors.double(), basis.input_vectors.double()
                    squares = (q.t() @ score @ r).square_()
                    total = sums[library].setdefault(name, torch.zeros_like(squares))
                    total.add_(squares)
        return sums

    def product(self, v: dict[str, Tensor]) -> dict[str, Tensor]:
        """``Σ_n ⟨s_n, v⟩ s_n`` over all parameters of the model."""
        parameters = dict(self.case.model.named_parameters())
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for x, y in zip(self._x().split(1), self.case.y.split(1), strict=True):
            score = torch.autograd.grad(self.case.loss(x, y), list(parameters.values()))
            along = sum((s * v[n].double()).sum() for n, s in zip(parameters, score, strict=True))
            for name, part in zip(parameters, score, strict=True):
                total[name].add_(along * part)
        return total


def errors(
    found: dict[str, Factors],
    covariances: dict[str, tuple[Tensor, Tensor]],
    eigenvalues: dict[str, Tensor],
) -> dict[str, float]:
    """The worst relative error of a layer, for each stage.

    That of the eigenvectors is ``‖offdiagonal(Qᵀ C Q)‖ / ‖C‖`` or ``‖Qᵀ Q − 1‖ / √n``,
    with the reference's factor C.
    """
    worst = dict.fromkeys(STAGES, 0.0)
    for name, layer in found.items():
        pairs = [
            (layer.inputs, layer.input_vectors, covariances[name][0]),
            (layer.gradients, layer.gradient_vectors, covariances[name][1]),
        ]
        for factor, vectors, reference in pairs:
            worst["covariances"] = max(worst["covariances"], relative(factor, reference))
            q = vectors.double()
            inside = q.t() @ reference @ q
            inside.fill_diagonal_(0)
            skew = q.t() @ q - torch.eye(len(q), dtype=q.dtype)
            off = max(inside.norm() / reference.norm(), skew.norm() / len(q) ** 0.5).item()
            worst["eigenvectors"] = max(worst["eigenvectors"], off)
        error = relative(layer.eigenvalues, eigenvalues[name])
        worst["eigenvalues"] = max(worst["eigenvalues"], error)
    return worst


def relative(found: Tensor, reference: Tensor) -> float:
    """``‖found − reference‖ / ‖reference‖``, infinite where the shapes differ."""
    if found.shape != reference.shape:
        return float("inf")
    return ((found.double() - reference).norm() / reference.norm()).item()


def product_error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The same over all parameters together."""
    if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in reference.items()}:
        return float("inf")
    return relative(
        torch.cat([found[n].flatten() for n in reference]),
        torch.cat([value.flatten() for value in reference.values()]),
    )


def _transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _input_rows(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        x = F.unfold(
            x, module.kernel_size, module.dilation, module.padding, module.stride
        ).transpose(1, 2)
    rows = x.unsqueeze(1) if x.ndim == 2 else x
    if module.bias is None:
        return rows
    return torch.cat([rows, rows.new_ones((*rows.shape[:-1], 1))], -1)


def _gradient_rows(module: nn.Module, g: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return g.flatten(2).transpose(1, 2)
    return g.unsqueeze(1) if g.ndim == 2 else g
