"""The libraries of the benchmark of Kronecker factors, and their Fisher–vector products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn as nn
from case import Case, Prepared
from factor_case import Factors, Library, vector
from models import logits, negative_log_likelihood
from neighbours import _linear_for_conv1d
from ours import examples
from torch import Tensor


class Ours(Library):
    """fisherscope: the passes that ``fs.estimate(structure="ekfac")`` makes."""

    def __init__(self, case: Case, layers: list[str]):
        from fisherscope.defaults import FisherConfig
        from fisherscope.passes import Pass
        from fisherscope.preparation import prepare
        from fisherscope.specs import EKFAC, KFAC

        super().__init__(case, layers)
        wanted = [
            f"{n}.{k}" for n in layers for k, _ in case.model.get_submodule(n).named_parameters()
        ]
        config = FisherConfig(parameters=wanted, structure=KFAC(), batch_size=len(case.x))
        kfac = prepare(case.model, examples(case), config)
        self._passes = {"kfac": kfac}
        self._passes["ekfac"] = dataclasses.replace(
            kfac,
            config=dataclasses.replace(config, structure=EKFAC()),
            identity=dataclasses.replace(kfac.identity, structure=str(EKFAC())),
        )
        self._pass = Pass
        self._kfac = self._ekfac = None

    def _run(self, kind: str, basis=None):
        prepared = self._passes[kind]
        return self._pass(prepared, prepared.examples, None, False, kind, basis).finish()

    def covariances(self) -> None:
        self._kfac = self._run("kfac")

    def eigenvectors(self) -> None:
        # Blocks keep their decomposition: those of the last run are not to be found again.
        self._kfac = dataclasses.replace(self._kfac)
        self._kfac.eigenbasis()

    def eigenvalues(self) -> None:
        self._ekfac = self._run("ekfac", self._kfac)

    def layers(self) -> dict[str, Factors]:
        factors, fitted = self._kfac.sums, self._ekfac.sums
        found = {}
        for block in self._kfac.layout:
            gradients, inputs = f"{block.names[0]}:gradients.0", f"{block.inputs}:inputs.0"
            found[block.names[0].removesuffix(".weight")] = Factors(
                factors[inputs],
                factors[gradients],
                fitted[inputs],
                fitted[gradients],
                fitted[f"{block.names[0]}:eigenvalues"],
            )
        return found


class Kronfluence(Library):
    """kronfluence: ``strategy="ekfac"`` with the empirical Fisher, last positions masked."""

    chunked = ("covariances", "eigenvalues")

    def __init__(self, case: Case, layers: list[str]):
        from kronfluence.analyzer import prepare_model
        from kronfluence.arguments import FactorArguments
        from kronfluence.task import Task
        from kronfluence.utils.state import State

        super().__init__(case, layers)
        if case.shape.family == "gpt2":
            _linear_for_conv1d(case.model)

        class LogLikelihood(Task):
            def compute_train_loss(self, batch, model, sample=False):
                return case.loss(*batch, model=model, expand=True)

            def compute_measurement(self, batch, model):
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self):
                return layers

            def get_attention_mask(self, batch):
                if not case.shape.is_lm:
                    return None
                mask = torch.ones_like(batch[0])
                mask[:, -1] = 0
                return mask

        self._task, self._state = LogLikelihood(), State()
        self._model = prepare_model(case.model, self._task)
        self._arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        self._covariances: dict[str, dict[str, Tensor]] = {}
        self._basis: dict[str, dict[str, Tensor]] = {}
        self._fitted: dict[str, dict[str, Tensor]] = {}

    def covariances(self) -> None:
        from kronfluence.factor.covariance import fit_covariance_matrices_with_loader

        _, self._covariances = fit_covariance_matrices_with_loader(
            self._model,
            self._state,
            self._task,
            list(self.cases["covariances"].chunks()),
            self._arguments,
            disable_tqdm=True,
        )

    def eigenvectors(self) -> None:
        from kronfluence.factor.eigen import perform_eigendecomposition

        self._basis = perform_eigendecomposition(
            self._covariances, self._model, self._state, self._arguments, disable_tqdm=True
        )

    def eigenvalues(self) -> None:
        from kronfluence.factor.eigen import fit_lambda_matrices_with_loader

        _, self._fitted = fit_lambda_matrices_with_loader(
            self._model,
            self._state,
            self._task,
            list(self.cases["eigenvalues"].chunks()),
            self._arguments,
            eigen_factors=self._basis,
            disable_tqdm=True,
        )

    def layers(self) -> dict[str, Factors]:
        return {
            name: Factors(
                self._covariances["activation_covariance"][name],
                self._covariances["gradient_covariance"][name],
                self._basis["activation_eigenvectors"][name],
                self._basis["gradient_eigenvectors"][name],
                self._fitted["lambda_matrix"][name],
            )
            for name in self.names
        }


class _Flat(nn.Module):
    """Outputs [rows, classes] for curvlinops, whose EKFAC takes nothing else."""

    def __init__(self, case: Case):
        super().__init__()
        self.shape, self.model = case.shape, case.model

    def forward(self, x: Tensor) -> Tensor:
        output = logits(self.shape, self.model, x)
        return output.flatten(0, -2)


class Curvlinops(Library):
    """curvlinops: ``EKFACLinearOperator``; rows go in without their unlabelled last token."""

    def __init__(self, case: Case, layers: list[str]):
        super().__init__(case, layers)
        if case.shape.family == "gpt2":
            _linear_for_conv1d(case.model)
        for parameter in case.model.parameters():
            parameter.requires_grad_(False)
        self._parameters = [p for n in layers for p in case.model.get_submodule(n).parameters()]
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._flat = _Flat(case)
        language = case.shape.is_lm
        self._data = [(case.x[:, :-1], case.y[:, 1:].flatten()) if language else (case.x, case.y)]
        self._operator = None
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def covariances(self) -> None:
        from curvlinops import EKFACLinearOperator

        data = self._data
        self._operator = EKFACLinearOperator(
            self._flat,
            nn.CrossEntropyLoss(reduction="sum"),
            self._parameters,
            data,
            fisher_type="empirical",
            check_deterministic=False,
            separate_weight_and_bias=False,
            num_data=len(data[0][0]),
            num_per_example_loss_terms=data[0][1].numel() // len(data[0][0]),
        )
        self._operator.compute_kronecker_factors()
        operator = self._operator
        self._kept = {
            n: (operator._input_covariances[n], operator._gradient_covariances[n])
            for n in operator._mapping
        }

    def eigenvectors(self) -> None:
        # It drops the factors as it decomposes them.
        for name, (inputs, gradients) in self._kept.items():
            self._operator._input_covariances[name] = inputs
            self._operator._gradient_covariances[name] = gradients
        self._operator._compute_eigenvectors()

    def eigenvalues(self) -> None:
        self._operator._corrected_eigenvalues.clear()
        self._operator.compute_eigenvalue_correction()

    def layers(self) -> dict[str, Factors]:
        operator, found = self._operator, {}
        for name in self.names:
            key = f"model.{name}"
            inputs, gradients = self._kept[key]
            fitted = operator._corrected_eigenvalues[key]
            rows = len(self._data[0][1]) * self._spread(name)
            found[name] = Factors(
                inputs * rows,
                gradients,
                operator._input_covariances_eigenvectors[key],
                operator._gradient_covariances_eigenvectors[key],
                next(iter(fitted.values())) if isinstance(fitted, dict) else fitted,
            )
        return found

    def _spread(self, name: str) -> int:
        """Positions of a convolution's output for each label."""
        module = self.case.model.get_submodule(name)
        if not isinstance(module, nn.Conv2d):
            return 1
        seen: list[int] = []
        handle = module.register_forward_hook(lambda m, i, o: seen.append(o[0, 0].numel()))
        with torch.no_grad():
            self._flat(self._data[0][0][:1])
        handle.remove()
        return seen[0]


LIBRARIES: dict[str, type[Library]] = {
    "ours": Ours,
    "kronfluence": Kronfluence,
    "curvlinops": Curvlinops,
}


def our_product(case: Case) -> Prepared:
    """``fs.operator(...).matvec(v)`` over all parameters."""
    from fisherscope.products import operator

    made = operator(case.model, examples(case), batch_size=len(case.x))
    v = vector(case.model)
    found: dict[str, Tensor] = {}
    return Prepared(
        lambda: found.update(made.matvec(v)),
        lambda: {name: value * len(case.x) for name, value in found.items()},
    )


class _Losses(nn.Module):
    """One negative log-likelihood an example: what a Fisher per example is the GGN of."""

    def __init__(self, case: Case):
        super().__init__()
        self.shape, self.model = case.shape, case.model

    def forward(self, batch) -> Tensor:
        output = logits(self.shape, self.model, batch["x"])
        return negative_log_likelihood(self.shape, output, batch["y"], reduction="none").unsqueeze(
            1
        )


def curvlinops_ggn(case: Case) -> Prepared:
    """curvlinops' Gauss–Newton product of half the squared losses: the Fisher per example."""
    from curvlinops import GGNLinearOperator

    made = GGNLinearOperator(
        _Losses(case),
        nn.MSELoss(reduction="sum"),
        list(case.model.parameters()),
        [({"x": case.x, "y": case.y}, torch.zeros(len(case.x), 1))],
        check_deterministic=False,
        num_data=len(case.x),
        batch_size_fn=lambda batch: len(batch["x"]),
    )
    # The Hessian of a squared error is 2.
    return _curvlinops_product(case, made, 0.5)


def curvlinops_ef(case: Case) -> Prepared:
    """curvlinops' ``EFLinearOperator``, which takes every token for a datum of its own."""
    from curvlinops import EFLinearOperator

    language = case.shape.is_lm
    data = [(case.x[:, :-1], case.y[:, 1:].flatten()) if language else (case.x, case.y)]
    made = EFLinearOperator(
        _Flat(case),
        nn.CrossEntropyLoss(reduction="sum"),
        list(case.model.parameters()),
        data,
        check_deterministic=False,
        num_data=len(case.x),
    )
    return _curvlinops_product(case, made, 1.0)


def _curvlinops_product(case: Case, made, scale: float) -> Prepared:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    v = list(vector(case.model).values())
    found: list[Tensor] = []

    def run() -> None:
        # Forward-mode derivatives exist for the plain attention only.
        with sdpa_kernel(SDPBackend.MATH):
            found[:] = made @ v

    def result() -> dict[str, Tensor]:
        names = [name for name, _ in case.model.named_parameters()]
        return {n: value.detach() * scale for n, value in zip(names, found, strict=True)}

    return Prepared(run, result)


PRODUCTS: dict[str, Callable[[Case], Prepared]] = {
    "ours": our_product,
    "curvlinops": curvlinops_ggn,
    "curvlinops-ef": curvlinops_ef,
}
