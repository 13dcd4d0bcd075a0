"""Several models of one architecture into one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.arguments import check_choice, check_list, check_number, check_whole
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.structures import Fisher
from fisherscope.surgery.merge import arithmetic
from fisherscope.surgery.merge.checks import check_fishers, check_models, checked_weights
from fisherscope.surgery.merge.curvature import Group, groups
from fisherscope.surgery.merge.result import Merged
from fisherscope.surgery.merge.solving import Solution, converged, solve

Method = Literal["fisher", "mean", "task-arithmetic", "ties"]
Parameters = Mapping[str, nn.Parameter]
Rule = Callable[[str], Tensor]

# Which options a method reads, and what they are if nobody sets them.
_OPTIONS: dict[str, set[str]] = {
    "fisher": {"base", "normalize", "floor", "iterations"},
    "mean": set(),
    "task-arithmetic": {"base", "scale"},
    "ties": {"base", "scale", "density", "trim"},
}
_UNSET: dict[str, Any] = {
    "base": None,
    "normalize": True,
    "floor": 0.0,
    "iterations": 1000,
    "scale": 1.0,
    "density": 0.2,
    "trim": "global",
}


@needs_whole
@torch.no_grad()
def merge(
    models: Sequence[nn.Module],
    fishers: Sequence[Fisher] | None = None,
    *,
    method: Method = "fisher",
    weights: Sequence[float] | None = None,
    base: nn.Module | None = None,
    normalize: bool = True,
    floor: float = 0.0,
    iterations: int = 1000,
    scale: float = 1.0,
    density: float = 0.2,
    trim: Literal["global", "tensor"] = "global",
    buffers: Literal["equal", "first"] = "equal",
) -> Merged:
    r"""Merge models of one architecture, and say what that costs each of them.

    ``"fisher"`` minimises the predicted cost of all models together,

    .. math:: \theta = \arg\min_\theta \sum_i \lambda_i\,
              \tfrac12 (\theta - \theta_i)^\top F_i\, (\theta - \theta_i),

    exactly for every structure: for a diagonal it is :math:`\theta_j = \sum_i \lambda_i F_{ij}
    \theta_{ij} / \sum_i \lambda_i F_{ij}` (Matena and Raffel, 2022); two Kronecker-factored
    Fishers are diagonalised simultaneously; whole blocks are solved by their eigenvectors; more
    than two Kronecker products, and eigenvalue-corrected ones, by conjugate gradients (Tam et al.,
    2024), whose residual the table shows. Directions in which no Fisher has a say stay at the
    base, or at the mean if there is none; parameters that the Fishers don't cover become the
    weighted mean.

    The other methods need no Fisher; with ``fishers`` their cost is predicted in the same table.
    Everything is computed in float32 or float64 and then written in the models' type.

    Args:
        models: The models; they stay as they are.
        fishers: One Fisher per model, estimated on it, all of one structure, unit and
            ``fisher_type``; needed for ``"fisher"``. Default: ``None``.
        method: ``"fisher"``, ``"mean"``, ``"task-arithmetic"`` (:math:`\theta_0 + s \sum_i w_i
            (\theta_i - \theta_0)`; Ilharco et al., 2023) or ``"ties"`` (Yadav et al., 2023).
            Default: ``"fisher"``.
        weights: One number per model: :math:`\lambda_i`, those of the mean, or :math:`w_i`. At
            least 0, except in task arithmetic. Default: ``None``, 1 each.
        base: What the models started from: needed for ``"task-arithmetic"`` and ``"ties"``.
            Default: ``None``.
        normalize: For ``"fisher"``: divide :math:`\lambda_i` by the Frobenius norm of :math:`F_i`
            (for a diagonal the L2 norm over all parameters, as in the paper), so that no task
            counts more because its Fisher is larger. Default: ``True``.
        floor: For ``"fisher"``: this fraction of the mean of the diagonal of :math:`F_i` is added
            to its diagonal, so that no eigenvalue is below it. Default: 0.0.
        iterations: For ``"fisher"``: at most so many of conjugate gradients. Default: 1000.
        scale: For ``"task-arithmetic"`` and ``"ties"``: s. Default: 1.0; 0.3 is usual in task
            arithmetic.
        density: For ``"ties"``: fraction of each task vector that is kept. Default: 0.2.
        trim: For ``"ties"``: ``"global"`` (largest entries of the whole task vector, as in the
            paper) or ``"tensor"`` (of each tensor, as in mergekit). Default: ``"global"``.
        buffers: ``"equal"`` refuses models whose buffers differ, ``"first"`` takes those of the
            first model. Default: ``"equal"``.

    Returns:
        The merged model, a copy of the first one with other weights and no gradients, and the
        table of costs.

    Raises:
        ParameterError: If an option is unknown, out of range, or of another method; if the
            number of Fishers or weights is not that of the models; if there is nothing to merge;
            if a base or Fishers are needed and missing.
        IdentityError: If models differ in class, parameters, ties, types or buffers; if a Fisher
            is another model's, or two Fishers are of different things.
        NonFiniteError: If a model's weights are not finite.
    """  # noqa: DOC502 (partly raised by callees)
    check_list("models", models, "a list of models")
    if fishers is not None:
        check_list("fishers", fishers, "a list of Fishers, one per model")
    given = {
        "base": base,
        "normalize": normalize,
        "floor": floor,
        "iterations": iterations,
        "scale": scale,
        "density": density,
        "trim": trim,
    }
    _check_options(method, given, fishers, buffers)
    check_models(models, base, buffers=buffers == "equal")
    signed = method == "task-arithmetic"
    lambdas = checked_weights(weights, len(models), signed=signed)
    if fishers is not None:
        check_fishers(models, fishers)
    held = [_floating(model) for model in models]
    root = None if base is None else _floating(base)
    rule = _rule(method, held, root, lambdas, scale, density, trim)
    merged = copy.deepcopy(models[0])
    merged.zero_grad(set_to_none=True)
    written, rows = _floating(merged), {}
    solutions = []
    blocks = groups(fishers, lambdas, normalize=normalize, floor=floor) if fishers else []
    for block in blocks:
        solution = None
        if method == "fisher":
            solution = _solved(block, held, root, lambdas, iterations)
            solutions.append(solution)
        values = block.view.split(solution.value) if solution else {n: rule(n) for n in block.names}
        for name, value in values.items():
            written[name].copy_(value)
        rows |= _rows(block, held, written, solution, method)
    for name in held[0]:
        if name not in rows:
            written[name].copy_(rule(name))
            how = "mean" if method == "fisher" else method
            rows[name] = [_row(name, i, p, written, how) for i, p in enumerate(held)]
    table = pd.DataFrame([row for name in held[0] for row in rows[name]])
    outcome = "solved" if converged(solutions) else "not_converged"
    return Merged(merged, table, method, outcome)


def _floating(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def _rule(
    method: str,
    held: Sequence[Parameters],
    root: Parameters | None,
    weights: Sequence[float],
    scale: float,
    density: float,
    trim: str,
) -> Rule:
    """What becomes of a tensor without a Fisher."""
    if method in {"fisher", "mean"} or root is None:
        return lambda name: arithmetic.mean([_wide(p[name]) for p in held], weights)

    def values(name: str) -> tuple[Tensor, list[Tensor]]:
        return _wide(root[name]), [_wide(p[name]) for p in held]

    if method == "task-arithmetic":
        return lambda name: arithmetic.task_arithmetic(*values(name), weights, scale)

    def thresholds(names: Sequence[str]) -> list[float]:
        return [
            arithmetic.threshold((_wide(p[n]) - _wide(root[n]) for n in names), density)
            for p in held
        ]

    whole = thresholds(list(root)) if trim == "global" else None
    return lambda name: arithmetic.ties(
        *values(name), weights, scale, whole if whole is not None else thresholds([name])
    )


def _wide(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().cpu().to(torch.promote_types(parameter.dtype, torch.float32))


def _joined(block: Group, parameters: Parameters) -> Tensor:
    return block.view.join({n: parameters[n].detach().cpu().double() for n in block.names})


def _solved(
    block: Group,
    held: Sequence[Parameters],
    root: Parameters | None,
    weights: Sequence[float],
    iterations: int,
) -> Solution:
    values = [_joined(block, parameters) for parameters in held]
    start = arithmetic.mean(values, weights) if root is None else _joined(block, root)
    return solve(block, values, start, iterations)


def _rows(
    block: Group,
    held: Sequence[Parameters],
    written: Parameters,
    solution: Solution | None,
    method: str,
) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in block.names}
    merged = _joined(block, written)
    for number, (term, parameters) in enumerate(zip(block.terms, held, strict=True)):
        costs = block.view.split(term.cost(merged - _joined(block, parameters)))
        for name in block.names:
            cost = costs[name].sum().item()
            how = solution.rule if solution else method
            rows[name].append(_row(name, number, parameters, written, how, cost, solution))
    return rows


def _row(
    name: str,
    number: int,
    parameters: Parameters,
    written: Parameters,
    rule: str,
    cost: float = math.nan,
    solution: Solution | None = None,
) -> dict[str, Any]:
    moved = written[name].detach().cpu().double() - parameters[name].detach().cpu().double()
    return {
        "tensor": name,
        "model": number,
        "n_parameters": moved.numel(),
        "rule": rule,
        "distance": torch.linalg.vector_norm(moved).item(),
        "cost": cost,
        "fallback": solution.fallback if solution else 0,
        "iterations": solution.iterations if solution else 0,
        "residual": solution.residual if solution else 0.0,
    }


def _check_options(
    method: str, given: Mapping[str, Any], fishers: Sequence[Fisher] | None, buffers: str
) -> None:
    for option, value, known in (
        ("method", method, get_args(Method)),
        ("trim", given["trim"], ("global", "tensor")),
        ("buffers", buffers, ("equal", "first")),
    ):
        check_choice(option, value, known)
    for option, value in given.items():
        if option not in _OPTIONS[method] and value != _UNSET[option]:
            takers = [name for name, options in _OPTIONS.items() if option in options]
            raise ParameterError(
                f"method={method!r} has no {option}=; leave it out, or use one of {takers}."
            )
    if method == "fisher" and fishers is None:
        raise ParameterError(
            "method='fisher' needs fishers=, one per model; use method='mean' to merge without."
        )
    if method in {"task-arithmetic", "ties"} and given["base"] is None:
        raise ParameterError(
            f"method={method!r} needs base=, the model that all models were tuned from."
        )
    check_number("floor", given["floor"], low=0)
    check_number("density", given["density"], above=0, most=1)
    check_number("scale", given["scale"])
    check_whole("iterations", given["iterations"], low=1)
