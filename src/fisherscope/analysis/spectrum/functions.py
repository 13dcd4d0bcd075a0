"""Traces of matrix functions by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fisherscope.analysis.spectrum.operand import symmetric_operand
from fisherscope.analysis.spectrum.quadrature import PROBES, STEPS, Function, quadrature
from fisherscope.analysis.spectrum.spectral_estimate import SpectralEstimate, exact, sampled
from fisherscope.arguments import check_number
from fisherscope.defaults import DEFAULTS
from fisherscope.errors import ParameterError

METHOD = "lanczos quadrature"


def trace_of_function(
    operator: Any,
    function: Function,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> SpectralEstimate:
    r"""Estimate ``tr f(A) = Σ_i f(λ_i)`` without the eigenvalues.

    .. math:: \operatorname{tr} f(A) \approx
              \frac{n}{P} \sum_{p=1}^{P} \sum_{j=1}^{k} w_{pj} f(\theta_{pj})

    with the Gauss rules of k Lanczos steps from P vectors of random signs (Ubaru, Chen and
    Saad, 2017). Exact for polynomials of degree ``2k − 1`` up to the randomness of the
    vectors. Keeps ``n · steps`` numbers per vector of a block.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        function: f, from an array of eigenvalues to as many values; finite between the
            smallest and the largest eigenvalue.
        probes: Number of random vectors P. Default: 16.
        steps: Lanczos steps k. Default: 64. When ``probes * steps`` reaches n (up to 4096),
            all eigenvalues are computed and the value is exact.
        seed: Keys the random vectors. Default: 0.
        block_size: Vectors per product; the value does not depend on it beyond rounding.
            Default: ``None``: 16, or fewer where their bases would pass 1 GiB.

    Returns:
        The estimate, with its standard error over the vectors and the truncation error of the
        steps. A function that is not finite raises ``NonFiniteError``; a number out of range,
        or an operator that is not symmetric, ``ParameterError``.

    Example:
        >>> import numpy as np
        >>> trace_of_function(np.diag([1.0, 4.0, 9.0]), np.sqrt).value
        6.0
    """
    operand = symmetric_operand(operator, block_size=block_size, seed=seed)
    rules = quadrature(operand, probes=probes, steps=steps, seed=seed)
    samples, coarse = rules.traces(function)
    name, products, n = "trace of function", rules.products, rules.n
    if rules.exact:
        return exact(name, float(samples[0]), products=products, n=n)
    return sampled(name, METHOD, samples, coarse=coarse, products=products, n=n)


def log_determinant(
    operator: Any,
    *,
    damping: float,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = DEFAULTS.seed,
    block_size: int | None = None,
) -> SpectralEstimate:
    """Estimate ``log det(A + damping · I) = tr log(A + damping · I)``.

    The logarithm is the harder the smaller the damping is against the largest eigenvalue;
    the outcome says when the steps were too few for it.

    Args:
        operator: Symmetric, [n, n]; as in :func:`as_linear_operator`.
        damping: Added to every eigenvalue; not negative.
        probes: Number of random vectors. Default: 16.
        steps: Lanczos steps. Default: 64. When ``probes * steps`` reaches n (up to 4096),
            the value is exact.
        seed: Keys the random vectors. Default: 0.
        block_size: Vectors per product; the value does not depend on it beyond rounding.
            Default: ``None``: 16, or fewer where their bases would pass 1 GiB.

    Returns:
        The estimate in nats, by :func:`trace_of_function`.

    Raises:
        ParameterError: If the damping is negative or not finite, or leaves an eigenvalue that
            is not positive; if another argument is out of range.
    """  # noqa: DOC502 (raised by callees)
    check_number("damping", damping, low=0)

    def damped_log(eigenvalues: np.ndarray) -> np.ndarray:
        if (least := eigenvalues.min()) + damping <= 0:
            raise ParameterError(
                f"operator + damping is not positive definite: it has the eigenvalue {least:.3g} "
                f"and damping={damping!r}; raise the damping above {max(-least, 0.0):.3g}"
            )
        return np.log(eigenvalues + damping)

    found = trace_of_function(
        operator, damped_log, probes=probes, steps=steps, seed=seed, block_size=block_size
    )
    return replace(found, quantity="log determinant")
