"""What a graph would do if only its degrees counted: configuration model and Molloy–Reed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Sizes:
    """The two largest clusters.

    Attributes:
        giant: Sites in the largest.
        second: Sites in the second largest.
    """

    giant: int
    second: int


def cluster_sizes(first: np.ndarray, second: np.ndarray, nodes: int) -> Sizes:
    """Clusters of one graph.

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        nodes: How many sites.

    Returns:
        The two largest.
    """
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    sizes = np.sort(np.bincount(labels))[::-1]
    return Sizes(int(sizes[0]), int(sizes[1]) if len(sizes) > 1 else 0)


def configuration_model(
    first: np.ndarray, second: np.ndarray, bundle: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rewire a graph so that every site keeps its number of bonds in every bundle.

    The second ends are dealt out again among the bonds of a bundle. Two bonds may join the same
    sites, as in the configuration model itself (Newman, Strogatz and Watts 2001).

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        bundle: int64 ``[bonds]``, the bundle that each bond belongs to.
        rng: Source of the permutation.

    Returns:
        Both ends of the rewired bonds.
    """
    shuffled = np.lexsort((rng.random(len(bundle)), bundle))
    grouped = np.argsort(bundle, kind="stable")
    dealt = np.empty_like(second)
    dealt[grouped] = second[shuffled]
    return first, dealt


def molloy_reed(first: np.ndarray, second: np.ndarray, nodes: int) -> float:
    r"""The ratio :math:`\kappa = \langle k^2\rangle / \langle k\rangle` of degrees.

    A random graph with these degrees has a giant cluster exactly if :math:`\kappa > 2` (Molloy and
    Reed 1995).

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        nodes: How many sites.

    Returns:
        The ratio; 0 without bonds.
    """
    degrees = np.bincount(first, minlength=nodes) + np.bincount(second, minlength=nodes)
    return float(np.square(degrees, dtype=np.float64).sum() / degrees.sum()) if len(first) else 0.0


def random_threshold(kappa: float) -> float:
    r"""The fraction of bonds whose random removal destroys the giant cluster.

    Args:
        kappa: :func:`molloy_reed` of the intact graph.

    Returns:
        :math:`1 - 1 / (\kappa - 1)` (Cohen et al. 2000), 0 where there is no giant cluster.
    """
    return 1 - 1 / (kappa - 1) if kappa > 2 else 0.0


def ordered_threshold(
    first: np.ndarray, second: np.ndarray, places: np.ndarray, nodes: int
) -> float:
    """The fraction removed in an order at which κ of what is left falls to 2.

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        places: int64 ``[bonds]``, when each bond goes.
        nodes: How many sites.

    Returns:
        The fraction, found by halving.
    """
    low, high = 0, len(places)
    while high - low > 1:
        middle = (low + high) // 2
        left = places >= middle
        if molloy_reed(first[left], second[left], nodes) > 2:
            low = middle
        else:
            high = middle
    return high / len(places)
