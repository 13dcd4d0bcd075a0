"""How each neighbouring library is driven: the way its own documentation has it, at its best.

Each is imported where it is used, so that a missing one fails alone. GPT-2's ``Conv1D`` becomes
an equal ``nn.Linear`` for the libraries that know only the latter, and its position ids get a
real batch dimension where a library needs one.
"""

from __future__ import annotations

import logging

import torch
import torch.nn as nn
from case import Case, Prepared
from models import logits, negative_log_likelihood
from torch import Tensor


def opacus(case: Case) -> Prepared:
    """Opacus: ``GradSampleModule`` materialises per-example gradients, squared afterwards."""
    from opacus import GradSampleModule

    logging.getLogger("opacus").setLevel(logging.ERROR)
    # Its hooks are silent in eval mode; there is no dropout to switch on.
    case.model.train()
    note = ""
    for module in case.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
            note = "refuses batch norm"
    wrapped = GradSampleModule(case.model, loss_reduction="sum", strict=False)
    trained = {
        name.removeprefix("_module."): p
        for name, p in wrapped.named_parameters()
        if p.requires_grad
    }
    sums: dict[str, Tensor] = {}

    def run() -> None:
        sums.update({name: torch.zeros_like(p) for name, p in trained.items()})
        for x, y in case.chunks():
            wrapped.zero_grad(set_to_none=True)
            case.loss(x, y, model=wrapped, expand=True).backward()
            for name, parameter in trained.items():
                sums[name].add_(parameter.grad_sample.square_().sum(0))
                parameter.grad_sample = None

    return Prepared(run, lambda: sums, note)


def nngeometry(case: Case) -> Prepared:
    """nngeometry: ``PMatDiag`` of the log-likelihood by its hook backend."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    layers = LayerCollection.from_model(case.model)
    data = TensorDataset(case.x, case.y)

    def log_likelihood(x: Tensor, y: Tensor) -> Tensor:
        output = logits(case.shape, case.model, x, expand_positions=True)
        return negative_log_likelihood(case.shape, output, y, reduction="none").unsqueeze(1)

    made: list[Tensor] = []

    def run() -> None:
        backend = TorchHooksJacobianBackend(
            layer_collection=layers, model=case.model, function=log_likelihood
        )
        loader = DataLoader(data, batch_size=case.chunk)
        made[:] = [PMatDiag(generator=backend, examples=loader).get_diag()]

    def result() -> dict[str, Tensor]:
        modules = layers.get_layerid_module_maps(case.model)[0]
        names = {id(p): name for name, p in case.model.named_parameters()}
        flat, sums = made[0] * len(case.x), {}
        for layer in layers.layers:
            for parameter in modules[layer].parameters(recurse=False):
                size = parameter.numel()
                sums[names[id(parameter)]] = flat[:size].view_as(parameter)
                flat = flat[size:]
        return sums

    return Prepared(run, result)


def backpack(case: Case) -> Prepared:
    """BackPACK: the ``SumGradSquared`` extension on every module that it knows."""
    from backpack import backpack as context
    from backpack import extend
    from backpack.extensions import SumGradSquared

    note = ""
    converted = _linear_for_conv1d(case.model) if case.shape.family == "gpt2" else set()
    if case.shape.is_lm:
        for module in case.model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                extend(module)
            elif any(True for _ in module.parameters(recurse=False)):
                # It has no rule for them and stops at a trainable parameter without one.
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
                note = "no norm layers"
    else:
        extend(case.model)
    trained = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}

    def run() -> None:
        sums.clear()
        for x, y in case.chunks():
            case.model.zero_grad(set_to_none=True)
            with context(SumGradSquared()):
                case.loss(x, y, expand=True).backward()
            for name, parameter in trained.items():
                value = parameter.sum_grad_squared
                sums[name] = sums[name].add_(value) if name in sums else value
                del parameter.sum_grad_squared

    return Prepared(run, lambda: _stored_layout(sums, converted), note)


def kronfluence(case: Case) -> Prepared:
    """kronfluence: its ``"diagonal"`` strategy over linear and convolution layers."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    converted = _linear_for_conv1d(case.model) if case.shape.family == "gpt2" else set()
    tied = {"lm_head"} if case.shape.family == "gpt2" else set()
    tracked = [
        name
        for name, module in case.model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in tied
    ]

    class LogLikelihood(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return case.loss(*batch, model=model, expand=True)

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return tracked

    task = LogLikelihood()
    shapes = {name: p.shape for name, p in case.model.named_parameters()}
    model = prepare_model(case.model, task)
    state = State()
    arguments = FactorArguments(strategy="diagonal", use_empirical_fisher=True)
    made: dict[str, Tensor] = {}

    def run() -> None:
        made.clear()
        _, factors = fit_lambda_matrices_with_loader(
            model, state, task, list(case.chunks()), arguments, disable_tqdm=True
        )
        made.update(factors["lambda_matrix"])

    def result() -> dict[str, Tensor]:
        sums = {}
        for name, value in made.items():
            value = value.flatten(1)
            if f"{name}.bias" in shapes:
                sums[f"{name}.bias"] = value[:, -1]
                value = value[:, :-1]
            sums[f"{name}.weight"] = value.view(shapes[f"{name}.weight"])
        return _stored_layout(sums, converted)

    return Prepared(run, result, "linear and convolution layers" + (", no tied head" * bool(tied)))


def _linear_for_conv1d(model: nn.Module) -> set[str]:
    """Replace Hugging Face ``Conv1D`` by equal linear layers; names of the replaced weights."""
    from transformers.pytorch_utils import Conv1D

    replaced = set()
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.nx, child.nf, device="meta")
                linear.weight = nn.Parameter(child.weight.detach().t().contiguous())
                linear.bias = child.bias
                setattr(parent, name, linear)
                replaced.add(f"{parent_name}.{name}.weight")
    return replaced


def _stored_layout(sums: dict[str, Tensor], converted: set[str]) -> dict[str, Tensor]:
    return {name: value.t() if name in converted else value for name, value in sums.items()}
