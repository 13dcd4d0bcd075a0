"""Gradients divided by a power of the Fisher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fisherscope.arguments import check_mapping, check_tensors
from fisherscope.engine.named import by_first_name, first_names
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import NonFiniteError, ParameterError
from fisherscope.structures import Fisher
from fisherscope.structures.vectors import check_damping, check_power

_SHOWN = 5


@needs_whole
def precondition(
    gradients: Mapping[str, Tensor],
    fisher: Fisher,
    *,
    damping: float = 1e-3,
    relative: bool = True,
    power: float = 1.0,
    model: nn.Module | None = None,
) -> dict[str, Tensor]:
    r"""Divide gradients by a power of the damped Fisher: :math:`(F + \lambda I)^{-p}\, g`.

    With :math:`p = 1` it is the natural gradient (Amari, 1998), with :math:`p = 1/2` what Adam
    (Kingma and Ba, 2015) does with its diagonal, with :math:`p = 0` the gradient itself. F is
    the mean per unit of the Fisher, whatever its structure; the power is that of the whole
    structured matrix, by its eigendecomposition, not of its entries.

    Args:
        gradients: Parameter name to gradient of the parameter's shape, one for each parameter of
            the Fisher and no other. For a natural gradient proper it is per unit, as F is.
        fisher: Any Fisher.
        damping: :math:`\lambda`, or :math:`\lambda` as a fraction of the diagonal's mean. Zero
            is fine if no eigenvalue of F is. Default: ``1e-3``.
        relative: Whether :math:`\lambda = \text{damping} \cdot \mathrm{tr} F / P`, with the
            trace and the number P of elements of all parameters of the Fisher together, so
            that one :math:`\lambda` holds for all tensors; otherwise :math:`\lambda =
            \text{damping}`, in the units of F. Default: ``True``.
        power: p, at least 0. Default: ``1.0``.
        model: If passed, a tied parameter's gradient may come under any of its names. Default:
            ``None``, only names of the Fisher.

    Returns:
        Parameter name (of the Fisher) to new tensor, on the gradient's device, in the type that
        gradient and Fisher promote to (at least float32).

    Raises:
        ParameterError: If there are no gradients, one is ``None``, missing, unknown, or of a
            wrong shape; if damping or power is negative, or if damping is zero for a singular
            Fisher.
        NonFiniteError: If a gradient is NaN or infinite, or the result overflows.
    """
    shapes = fisher.identity.parameters
    check_damping(damping)
    check_power(power)
    _check_present(gradients)
    names = {name: name for name in shapes}
    if model is not None:
        own = dict(model.named_parameters(remove_duplicate=False))
        names = first_names(model, {name: own[name] for name in shapes if name in own})
    given = by_first_name(gradients, shapes, names, "gradients has")
    if missing := [name for name in shapes if name not in given]:
        raise ParameterError(
            f"gradients lacks {_listed(missing)} of the Fisher's {len(shapes)} parameters; pass "
            "all of them, or estimate with parameters= on those that have a gradient."
        )
    solved = fisher.solve(given, damping=_level(fisher, damping, relative), power=power)
    for name, tensor in solved.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"the preconditioned gradient of {name!r} overflows {tensor.dtype}; pass a larger "
                "damping."
            )
    return {name: tensor.to(given[name].device) for name, tensor in solved.items()}


def _level(fisher: Fisher, damping: float, relative: bool) -> float:
    if not relative or damping == 0:
        return damping
    mean = fisher.trace() / fisher.n_parameters
    if not mean > 0:
        raise ParameterError(
            "the Fisher is zero everywhere, so damping relative to the mean of its diagonal is "
            "zero too; pass relative=False with a damping in absolute units."
        )
    return damping * mean


def _check_present(gradients: Mapping[str, Tensor]) -> None:
    check_mapping("gradients", gradients, "{parameter name: gradient}")
    if not gradients:
        raise ParameterError(
            "gradients is empty; pass {name: p.grad for name, p in model.named_parameters()} after "
            "backward()."
        )
    if absent := [name for name, gradient in gradients.items() if gradient is None]:
        raise ParameterError(
            f"there is no gradient (None) of {_listed(absent)}; run backward() first, leave "
            "frozen parameters out, and estimate the Fisher on the same ones."
        )
    check_tensors("gradients", gradients, "{parameter name: gradient}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
