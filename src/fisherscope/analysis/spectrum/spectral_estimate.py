"""One number about a spectrum, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fisherscope.results import Result

SpectralOutcome = Literal["exact", "estimated", "not_converged", "zero_operator"]
Statistic = Callable[[np.ndarray], np.ndarray]
# Below this much of the value a difference between two rules is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SpectralEstimate(Result):
    """An estimate of a function of the spectrum.

    Attributes:
        quantity: What is estimated, such as ``"trace"``.
        method: How.
        value: The estimate.
        standard_error: Over the random vectors; 0 where the value is exact.
        truncation: Change of the value between half of the Lanczos steps and all of them, an
            upper bound of the bias wherever doubling the steps at least halves it; 0 for
            methods without steps.
        samples: Random vectors that the standard error is taken over; 0 if exact.
        products: Products with the operator that it took, without those that checked its
            symmetry.
        n: Size of the operator.
        outcome: ``"exact"`` (all of the operator was seen), ``"estimated"`` (the standard
            error says how well), ``"not_converged"`` (``truncation`` exceeds the standard
            error: take more steps), or ``"zero_operator"`` (there is nothing to divide by).
    """

    quantity: str
    method: str
    value: float
    standard_error: float
    truncation: float
    samples: int
    products: int
    n: int
    outcome: SpectralOutcome

    def to_frame(self) -> pd.DataFrame:
        """The estimate as one row.

        Returns:
            One column per attribute.
        """
        return pd.DataFrame([asdict(self)])


def exact(quantity: str, value: float, *, products: int, n: int) -> SpectralEstimate:
    """An estimate that saw the whole operator.

    Args:
        quantity: What it is.
        value: The value.
        products: Products used.
        n: Size of the operator.

    Returns:
        The estimate, without error.
    """
    return SpectralEstimate(quantity, "exact", value, 0.0, 0.0, 0, products, n, "exact")


def sampled(
    quantity: str,
    method: str,
    samples: np.ndarray,
    *,
    products: int,
    n: int,
    variance: float | None = None,
    coarse: np.ndarray | None = None,
    statistic: Statistic | None = None,
) -> SpectralEstimate:
    """An estimate from one sample per random vector.

    Args:
        quantity: What it is.
        method: How.
        samples: [vectors], or [vectors, quantities] with a ``statistic``.
        products: Products used.
        n: Size of the operator.
        variance: Of the mean, where the samples are not independent. Default: ``None``, their
            own over their number.
        coarse: The same samples from half of the steps. Default: ``None``, no steps.
        statistic: Function of the means, [..., quantities] to [...]; value and standard error
            are its jackknife (Efron and Stein, 1981). Default: ``None``, the mean itself.

    Returns:
        The estimate; ``"not_converged"`` where the steps matter more than the vectors.
    """
    value, error = _jackknife(samples, statistic)
    error = error if variance is None else math.sqrt(variance)
    truncation = 0.0 if coarse is None else abs(value - _jackknife(coarse, statistic)[0])
    converged = truncation <= max(error, _ROUNDING * abs(value))
    return SpectralEstimate(
        quantity=quantity,
        method=method,
        value=value,
        standard_error=error,
        truncation=truncation,
        samples=len(samples),
        products=products,
        n=n,
        outcome="estimated" if converged else "not_converged",
    )


def _jackknife(samples: np.ndarray, statistic: Statistic | None) -> tuple[float, float]:
    count = len(samples)
    mean = samples.mean(0)
    if statistic is None:
        return float(mean), float(samples.std(ddof=1) / math.sqrt(count))
    without = statistic((count * mean - samples) / (count - 1))
    value = count * statistic(mean) - (count - 1) * without.mean()
    return float(value), float(math.sqrt((count - 1) * without.var()))
