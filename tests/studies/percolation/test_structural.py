from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fisherscope.studies.percolation.null import (
    cluster_sizes,
    configuration_model,
    molloy_reed,
    random_threshold,
)
from fisherscope.studies.percolation.structural import bond_clusters, site_clusters


def random_graph(n, m, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, n, (2, m))
    return first, second, rng


def sizes(first, second, n):
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    return np.sort(np.bincount(labels))[::-1], labels


# Would catch: parallel bonds whose times are added up, a bond at time zero that is no bond, rows
# off by one, and a second largest cluster that goes stale after two large ones have joined.
@pytest.mark.parametrize("seed", range(3))
def test_bond_clusters_are_those_of_csgraph_at_every_fraction(seed):
    n, m = 60, 150
    first, second, rng = random_graph(n, m, seed)
    places = rng.permutation(m)
    found = bond_clusters(first, second, places, n, range(5), range(55, 60))
    for removed in range(m + 1):
        left = places >= removed
        expected, labels = sizes(first[left], second[left], n)
        row = found.at(removed)
        assert found.giant[row] == expected[0]
        assert found.second[row] == (expected[1] if len(expected) > 1 else 0)
        assert found.squares[row] == (expected**2).sum()
        rest = expected[1:]
        outside = (rest**2).sum() / rest.sum() if len(rest) else 0.0
        assert found.susceptibility[row] == pytest.approx(outside)
        assert found.spans[row] == bool(set(labels[:5]) & set(labels[55:]))
    lost = round(found.spanning() * m)
    assert not found.spans[found.at(lost)] and (lost == 0 or found.spans[found.at(lost - 1)])


# Would catch: removed sites that still count as clusters of one, bonds that outlive an end.
@pytest.mark.parametrize("seed", range(3))
def test_site_clusters_are_those_of_networkx(seed):
    n, m = 40, 70
    first, second, rng = random_graph(n, m, seed)
    places = rng.permutation(n)
    found = site_clusters(first, second, places)
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(zip(first.tolist(), second.tolist(), strict=True))
    for removed in range(n):
        graph_left = graph.subgraph(np.flatnonzero(places >= removed).tolist())
        expected = sorted(map(len, nx.connected_components(graph_left)), reverse=True)
        row = found.at(removed)
        assert found.giant[row] == expected[0]
        assert found.second[row] == (expected[1] if len(expected) > 1 else 0)
        assert found.alive[row] == n - removed


# Would catch: a threshold of what is left instead of what is removed, or a peak at an end.
@pytest.mark.parametrize("degree", [4, 8])
def test_erdos_renyi_breaks_where_theory_says(degree):
    n = 4000
    peaks = []
    for seed in range(8):
        first, second, rng = random_graph(n, n * degree // 2, seed)
        found = bond_clusters(first, second, rng.permutation(len(first)), n)
        peaks.append(found.peak(found.second))
    # The window of a finite graph is of order n^(-1/3) / <k> around the threshold.
    error = np.std(peaks, ddof=1) / np.sqrt(len(peaks))
    assert abs(np.mean(peaks) - (1 - 1 / degree)) < 3 * error + n ** (-1 / 3) / degree


# Would catch: κ of the wrong moments, and the formula for bonds of an Erdős–Rényi graph used for
# a graph of unequal degrees, where 1 − 1/⟨k⟩ = 0.75 is far off.
def test_a_configuration_model_breaks_where_molloy_and_reed_say():
    n = 6000
    degrees = np.where(np.arange(n) % 4 == 0, 10, 2)
    peaks, predicted = [], 0.0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        stubs = rng.permutation(np.repeat(np.arange(n), degrees))
        first, second = stubs[::2], stubs[1::2]
        predicted = random_threshold(molloy_reed(first, second, n))
        found = bond_clusters(first, second, rng.permutation(len(first)), n)
        peaks.append(found.peak(found.second))
    assert predicted == pytest.approx(1 - 1 / ((100 + 3 * 4) / (10 + 3 * 2) - 1))
    error = np.std(peaks, ddof=1) / np.sqrt(len(peaks))
    assert abs(np.mean(peaks) - predicted) < 3 * error + n ** (-1 / 3) / 4


# Would catch: bonds dealt across bundles, or not dealt again at all.
def test_rewiring_keeps_degrees_and_forgets_the_rest():
    rng = np.random.default_rng(0)
    first = np.repeat(np.arange(20), 10)
    second = 100 + np.where(first < 10, np.tile(np.arange(10), 20), 10 + np.tile(np.arange(10), 20))
    bundle = np.arange(200) % 2
    assert cluster_sizes(first, second, 120).giant == 20
    a, b = configuration_model(first, second, bundle, rng)
    assert cluster_sizes(a, b, 120).giant == 40
    for number in range(2):
        mine = bundle == number
        np.testing.assert_array_equal(np.bincount(a[mine]), np.bincount(first[mine]))
        np.testing.assert_array_equal(np.bincount(b[mine]), np.bincount(second[mine]))
