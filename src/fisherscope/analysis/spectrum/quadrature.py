"""Stochastic Lanczos quadrature: the spectrum as seen by random vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fisherscope.analysis.spectrum.lanczos import tridiagonalise
from fisherscope.analysis.spectrum.operand import Operand, require_whole
from fisherscope.analysis.spectrum.probes import Stream, rademacher
from fisherscope.errors import NonFiniteError, ParameterError

PROBES = 16
STEPS = 64
# Up to this size all eigenvalues cost less than the products that they take.
_DENSE = 4096
_BASIS_BYTES = 1 << 30

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss rules of several probes.

    Attributes:
        n: Size of the operator.
        nodes: [probes, steps], ascending; where a rule has fewer nodes the last is repeated.
        weights: [probes, steps], each row adds up to one; repeated nodes have none.
        coarse_nodes: The same of the first half of the steps, to see whether the rules have
            converged; [probes, any].
        coarse_weights: Likewise.
        products: Number of products that it took.
        exact: Whether the nodes are all the eigenvalues (one row, equal weights).
    """

    n: int
    nodes: np.ndarray
    weights: np.ndarray
    coarse_nodes: np.ndarray
    coarse_weights: np.ndarray
    products: int
    exact: bool

    def traces(self, function: Function) -> tuple[np.ndarray, np.ndarray]:
        """What each probe says about ``tr f(A)``.

        Args:
            function: f, from an array of eigenvalues to as many values.

        Returns:
            ``n Σ_j w_j f(θ_j)`` per probe, from all steps and from half of them.
        """
        return (
            self.n * (self.weights * _values(function, self.nodes)).sum(1),
            self.n * (self.coarse_weights * _values(function, self.coarse_nodes)).sum(1),
        )


def quadrature(operand: Operand, *, probes: int, steps: int, seed: int) -> Quadrature:
    r"""Gauss rules for ``vᵀ f(A) v`` with v of random signs.

    .. math:: \operatorname{tr} f(A) \approx
              \frac{n}{P} \sum_{p=1}^{P} \sum_{j=1}^{k} w_{pj} f(\theta_{pj})

    When the budget of ``probes * steps`` products reaches n, the matrix itself is formed by n
    products and its eigenvalues are the nodes.

    Args:
        operand: A symmetric operand.
        probes: Number of random vectors, at least 2.
        steps: Lanczos steps for each, at least 2.
        seed: Keys the vectors.

    Returns:
        The rules of all probes (Ubaru, Chen and Saad, 2017).
    """
    require_whole("probes", probes, 2)
    require_whole("steps", steps, 2)
    if operand.n <= min(probes * steps, _DENSE):
        nodes = np.linalg.eigvalsh(operand.dense())[None]
        even = np.full_like(nodes, 1 / operand.n)
        return Quadrature(operand.n, nodes, even, nodes, even, operand.products, True)
    room = max(1, _BASIS_BYTES // (8 * operand.n * steps))
    rules, coarse = [], []
    width = min(operand.block_size, room)
    for first in range(0, probes, width):
        indices = range(first, min(first + width, probes))
        starts = rademacher(seed, Stream.PROBE, indices, operand.n)
        for found in tridiagonalise(operand, starts, steps):
            rules.append(found.quadrature())
            coarse.append(found.quadrature(None if found.closed else (steps + 1) // 2))
    return Quadrature(
        operand.n, *_stacked(rules), *_stacked(coarse), products=operand.products, exact=False
    )


def _stacked(rules: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(nodes) for nodes, _ in rules)
    nodes = [np.pad(x, (0, longest - len(x)), mode="edge") for x, _ in rules]
    weights = [np.pad(w, (0, longest - len(w))) for _, w in rules]
    return np.stack(nodes), np.stack(weights)


def _values(function: Function, nodes: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        values = np.asarray(function(nodes.ravel()), dtype=np.float64)
    if values.shape != (nodes.size,):
        raise ParameterError(
            f"function: {nodes.size} eigenvalues gave the shape {values.shape}; it must map an "
            "array to an array of the same length"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        raise NonFiniteError(
            f"function is not finite at {nodes.ravel()[bad][0]:.3g}, which lies within the "
            "spectrum; shift it (damping) or bound the function there"
        )
    return values.reshape(nodes.shape)
