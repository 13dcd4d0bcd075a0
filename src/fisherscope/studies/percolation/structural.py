"""When a graph falls apart: the whole curve of its clusters from one spanning tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of a graph while its bonds, or its sites, are removed one after another.

    The numbers change only where a cluster breaks, so there are at most as many steps as sites
    and tree bonds together.

    Attributes:
        total: How many bonds (or sites) are removed in all.
        nodes: How many sites.
        times: int64 ``[steps]``, descending. Row ``s + 1`` of the arrays below holds as long as
            no more than ``times[s]`` are removed, down to ``times[s + 1] + 1``.
        giant: int64 ``[steps + 1]``, sites in the largest cluster.
        second: int64 ``[steps + 1]``, sites in the second largest.
        squares: float64 ``[steps + 1]``, sum of squared cluster sizes.
        alive: int64 ``[steps + 1]``, sites that are left.
        spans: bool ``[steps + 1]``, whether a cluster joins an input with an output.
    """

    total: int
    nodes: int
    times: np.ndarray
    giant: np.ndarray
    second: np.ndarray
    squares: np.ndarray
    alive: np.ndarray
    spans: np.ndarray

    def at(self, removed: np.ndarray) -> np.ndarray:
        """Rows of the arrays.

        Args:
            removed: Numbers of removed bonds (sites).

        Returns:
            int64, of the same shape.
        """
        return np.searchsorted(-self.times, -np.asarray(removed), side="right")

    @property
    def susceptibility(self) -> np.ndarray:
        """float64 ``[steps + 1]``, mean size of the cluster of a site outside the largest one."""
        rest = self.alive - self.giant
        others = self.squares - self.giant.astype(np.float64) ** 2
        return np.divide(others, rest, out=np.zeros(len(rest)), where=rest > 0)

    def peak(self, values: np.ndarray) -> float:
        """The fraction at which some values are largest.

        Args:
            values: ``[steps + 1]``.

        Returns:
            The largest fraction removed at which the maximum holds.
        """
        row = int(values.argmax())
        return 1.0 if row == 0 else float(self.times[row - 1] / self.total)

    def spanning(self) -> float:
        """The fraction at which no path leads from an input to an output any more.

        Returns:
            The smallest such fraction; 0 if there never was one.
        """
        if not self.spans.any():
            return 0.0
        row = int(self.spans.argmax())
        return 1.0 if row == 0 else float((self.times[row - 1] + 1) / self.total)


def bond_clusters(
    first: np.ndarray,
    second: np.ndarray,
    places: np.ndarray,
    nodes: int,
    inputs: Iterable[int] = (),
    outputs: Iterable[int] = (),
) -> Clusters:
    """Remove bonds one after another.

    Two sites are joined by the bonds that are left exactly if they are joined by those of the
    spanning tree whose bonds go latest, so only its bonds need to be followed.

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        places: int64 ``[bonds]``, a permutation: when each bond goes, 0 is first.
        nodes: How many sites.
        inputs: Sites. Default: none.
        outputs: Sites. Default: none.

    Returns:
        The clusters.
    """
    a, b, when = _latest_tree(first, second, places, nodes)
    born = np.full(nodes, len(places))
    return _grow(a, b, when, born, len(places), inputs, outputs)


def site_clusters(
    first: np.ndarray,
    second: np.ndarray,
    places: np.ndarray,
    inputs: Iterable[int] = (),
    outputs: Iterable[int] = (),
) -> Clusters:
    """Remove sites one after another, with all their bonds.

    Args:
        first: int64 ``[bonds]``, one end of each bond.
        second: int64 ``[bonds]``, the other.
        places: int64 ``[sites]``, a permutation: when each site goes, 0 is first.
        inputs: Sites. Default: none.
        outputs: Sites. Default: none.

    Returns:
        The clusters.
    """
    lasts = np.minimum(places[first], places[second])
    a, b, when = _latest_tree(first, second, lasts, len(places))
    return _grow(a, b, when, places, len(places), inputs, outputs)


def _latest_tree(
    first: np.ndarray, second: np.ndarray, places: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends and times of a spanning forest whose bonds go as late as possible."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    late = np.argsort(-places, kind="stable")
    low, high, late_places = low[late], high[late], places[late]
    # Of several bonds between the same two sites the latest counts; sparse matrices add them up.
    _, kept = np.unique(low.astype(np.int64) * nodes + high, return_index=True)
    low, high, when = low[kept], high[kept], late_places[kept]
    proper = low != high
    # A stored zero would be no bond at all.
    age = (places.max(initial=0) - when[proper] + 1).astype(np.float64)
    graph = coo_array((age, (low[proper], high[proper])), shape=(nodes, nodes))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    return tree.row, tree.col, (places.max(initial=0) + 1 - tree.data).astype(np.int64)


def _grow(
    a: np.ndarray,
    b: np.ndarray,
    when: np.ndarray,
    born: np.ndarray,
    total: int,
    inputs: Iterable[int],
    outputs: Iterable[int],
) -> Clusters:
    # Backwards in time: sites appear, bonds join them (Newman and Ziff 2001).
    nodes = len(born)
    parent, size = list(range(nodes)), [1] * nodes
    ends = [0] * nodes
    for site in inputs:
        ends[site] |= 1
    for site in outputs:
        ends[site] |= 2
    heap: list[tuple[int, int]] = []
    alive, squares, spans = 0, 0, False

    def root(site: int) -> int:
        while parent[site] != site:
            parent[site] = parent[parent[site]]
            site = parent[site]
        return site

    def live() -> tuple[int, int]:
        while heap and (parent[heap[0][1]] != heap[0][1] or size[heap[0][1]] != -heap[0][0]):
            heappop(heap)
        return heap[0] if heap else (0, -1)

    def two_largest() -> tuple[int, int]:
        first = live()
        if first[1] < 0:
            return 0, 0
        heappop(heap)
        second = live()
        heappush(heap, first)
        return -first[0], -second[0]

    for site in np.flatnonzero(born >= total).tolist():
        heap.append((-1, site))
        alive += 1
        squares += 1
        spans |= ends[site] == 3
    heap.sort()
    later = np.flatnonzero(born < total)
    order = np.argsort(-np.concatenate([born[later], when]), kind="stable").tolist()
    moments = np.concatenate([born[later], when]).tolist()
    sites, lows, highs = later.tolist(), a.tolist(), b.tolist()
    rows = [(*two_largest(), squares, alive, spans)]
    times: list[int] = []
    for event in order:
        if event < len(sites):
            site = sites[event]
            heappush(heap, (-1, site))
            alive, squares = alive + 1, squares + 1
            spans |= ends[site] == 3
        else:
            one, two = root(lows[event - len(sites)]), root(highs[event - len(sites)])
            if size[one] < size[two]:
                one, two = two, one
            squares += 2 * size[one] * size[two]
            parent[two] = one
            size[one] += size[two]
            ends[one] |= ends[two]
            spans |= ends[one] == 3
            heappush(heap, (-size[one], one))
        row = (*two_largest(), squares, alive, spans)
        if times and times[-1] == moments[event]:
            rows[-1] = row
        else:
            times.append(moments[event])
            rows.append(row)
    giant, second, square, living, through = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return Clusters(
        total,
        nodes,
        np.array(times, dtype=np.int64),
        giant,
        second,
        square.astype(np.float64),
        living,
        through.astype(bool),
    )
