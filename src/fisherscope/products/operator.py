"""``operator()``: a curvature matrix that is known by its products only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, Sampling, Unit
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.naming import Selection
from fisherscope.preparation import Prepared, prepare, settled
from fisherscope.products import first_order, second_order
from fisherscope.structures.operator import FisherOperator
from fisherscope.structures.vectors import check_vector

Curvature = Literal["fisher", "ggn", "hessian"]


class Operator:
    """A curvature matrix over a data set, mean per unit, in products with vectors.

    Made by :func:`operator`. Every product is a pass over the data, so multiply several
    vectors at once. Vectors are mappings from parameter name to tensor, as for
    :class:`~fisherscope.structures.Fisher`; absent names count as zero.

    Attributes:
        curvature: ``"fisher"``, ``"ggn"`` or ``"hessian"``.
        n_examples: Number of examples.
        n_units: What the sum over examples is divided by.
    """

    def __init__(self, prepared: Prepared, curvature: Curvature):
        self._prepared = prepared
        self.curvature = curvature
        self.n_examples = len(prepared.examples)
        tokens = sum(prepared.likelihood.tokens(e) for e in prepared.examples)
        self.n_units = self.n_examples if prepared.config.unit == "example" else tokens

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in the order in which they are flattened."""
        return dict(self._prepared.identity.parameters)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: the number of parameters, twice."""
        size = sum(math.prod(shape) for shape in self.parameters.values())
        return size, size

    def matvec(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product with a vector, or with several in one pass.

        Args:
            v: Parameter name to tensor of the parameter's shape, all of them with one
                leading dimension more for several vectors.

        Returns:
            Name of every parameter to a new CPU tensor of the same kind, fp32 or better. An
            unknown name or a wrong shape raises ``ParameterError``, a score that is not
            finite ``NonFiniteError``.
        """
        lead = check_vector(v, self.parameters, batch=True)

        def products(prepared: Prepared) -> dict[str, Tensor]:
            self._prepared = prepared  # what is learnt of it is not learnt again
            return self._products(prepared, v, bool(lead))

        found = settled(self._prepared, products)
        scale = self.n_units
        if self._prepared.config.fisher_type == "mc":
            scale *= self._prepared.config.draws
        found = {name: total.cpu() / scale for name, total in found.items()}
        return found if lead else {name: total[0] for name, total in found.items()}

    @torch.inference_mode(False)
    def _products(
        self, prepared: Prepared, v: Mapping[str, Tensor], several: bool
    ) -> dict[str, Tensor]:
        totals, placed = {}, {}
        count = len(next(iter(v.values()))) if several else 1
        for name, p in prepared.parameters.items():
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            totals[name] = torch.zeros((count, *p.shape), dtype=dtype, device=p.device)
            if name in v:
                placed[name] = v[name].detach().to(p.device, dtype).reshape(totals[name].shape)
        if self.curvature == "fisher":
            first_order.add_products(prepared, placed, totals)
        else:
            second_order.add_products(prepared, placed, totals, self.curvature)
        return totals

    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        """The quadratic form of a displacement, mean per unit.

        Args:
            delta: Parameter name to displacement.

        Returns:
            ``delta^T C delta``.
        """
        product = self.matvec(delta)
        parts = ((product[n].double() * d.detach().cpu().double()).sum() for n, d in delta.items())
        return math.fsum(float(part) for part in parts)

    def to_scipy(self) -> FisherOperator:
        """The matrix as an operator for scipy's solvers and for ``fs.spectrum``.

        Returns:
            A symmetric ``scipy.sparse.linalg.LinearOperator`` in float64 over the flattened
            parameters.
        """
        return FisherOperator(self.matvec, self.parameters, self.shape[0])

    def __repr__(self) -> str:
        config = self._prepared.config
        kind = f", {config.fisher_type}" if self.curvature == "fisher" else ""
        return (
            f"Operator({self.curvature}{kind}, per {config.unit}, {self.shape[0]} parameters, "
            f"{self.n_examples} examples)"
        )


@needs_whole
def operator(
    model: nn.Module,
    data: Any,
    *,
    curvature: Curvature = "fisher",
    fisher_type: FisherType = DEFAULTS.fisher_type,
    unit: Unit = DEFAULTS.unit,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    sampling: Sampling = DEFAULTS.sampling,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
) -> Operator:
    r"""A curvature matrix of a model on data, without ever forming it.

    ``"fisher"``: :math:`F v = \frac1N \sum_n \langle s_n, v\rangle s_n` with first derivatives
    only. ``"ggn"``: the generalised Gauss-Newton matrix, which equals the type-2 Fisher, and
    ``"hessian"``: that of the data's loss; both differentiate twice.

    Args:
        model: The model; it comes back untouched.
        data: As in :func:`fisherscope.estimate`.
        curvature: ``"fisher"``, ``"ggn"`` or ``"hessian"``. Default: ``"fisher"``.
        fisher_type: As in :func:`fisherscope.estimate`; for ``"fisher"`` only. For exact
            products of the type-2 Fisher of a language model ``curvature="ggn"`` is far
            cheaper than its columns. Default: ``"empirical"``.
        unit: ``"example"`` or ``"token"``. Default: ``"example"``.
        parameters: As in :func:`fisherscope.estimate`. Default: ``None``, all.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: As in :func:`fisherscope.estimate`. Default: 1.
        sampling: As in :func:`fisherscope.estimate`. Default: ``"labels"``.
        seed: As in :func:`fisherscope.estimate`. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many. Default: ``None``, all.

    Returns:
        The operator. Wrong data and options raise as in :func:`fisherscope.estimate`.

    Raises:
        ParameterError: If the curvature or the unit is none of these, or ``fisher_type`` is
            given for another curvature than ``"fisher"``.
    """
    if curvature not in get_args(Curvature):
        raise ParameterError(
            f"curvature={curvature!r} is unknown; use one of {', '.join(get_args(Curvature))}"
        )
    if unit not in {"example", "token"}:
        raise ParameterError(
            f"unit={unit!r} has no matrix over all parameters; use unit='example' or 'token'"
        )
    if curvature != "fisher" and fisher_type != DEFAULTS.fisher_type:
        raise ParameterError(
            f"fisher_type={fisher_type!r} is for curvature='fisher' only: 'ggn' is the exact "
            "type-2 Fisher and 'hessian' is of the data's labels; leave it out"
        )
    config = FisherConfig(
        fisher_type=fisher_type,
        unit=unit,
        parameters=parameters,
        likelihood=likelihood,
        draws=draws,
        sampling=sampling,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
    )
    return Operator(prepare(model, data, config), curvature)
