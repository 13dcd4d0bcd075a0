"""Similarity of block structures as matrices, against dense square roots."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import fisherscope as fs
from fisherscope.analysis import similarity
from fisherscope.errors import IdentityError, ParameterError
from oracles import models, rows
from structures.matrices import BLOCKWISE, explicit, make


def _overlap(a, b):
    """Kirkpatrick et al. (2017), supplement: 1 - d² with both traces scaled to one."""
    a, b = a / np.trace(a), b / np.trace(b)
    root = sqrtm(b)
    middle = np.real(sqrtm(root @ a @ root))
    return 1 - 0.5 * np.trace(a + b - 2 * middle)


def _pair(name):
    """Two Fishers of other data; of an EKFAC in one basis."""
    a, b = make(name), make(name, ids="vwxyz", seed=1)
    if name.startswith("ekfac"):
        shared = {k: t if "eigenvalues" in k else a.sums[k] for k, t in b.sums.items()}
        shared |= {k: t for k, t in b.sums.items() if ":" not in k}
        b = replace(b, sums=shared)
    return a, b


@pytest.mark.parametrize("name", BLOCKWISE)
def test_against_dense_square_roots(name):
    # Would catch: the mean of blocks' overlaps for that of the whole, traces that aren't scaled,
    # the product of the factors' overlaps without their traces, roots forgotten, one factor
    # left out, the coefficient of the diagonals for that of the matrices.
    a, b = _pair(name)
    found = similarity(a, b)
    x, y = explicit(a), explicit(b)
    assert found.value("bhattacharyya") == pytest.approx(_overlap(x, y), rel=1e-6)
    cosine = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert found.value("cosine") == pytest.approx(cosine, rel=1e-9)
    assert found.to_frame()["metric"].tolist() == ["cosine", "bhattacharyya"]
    assert (found.k, found.n, found.permutations) == (0, len(x), 0)
    assert similarity(a, a).value("bhattacharyya") == pytest.approx(1, rel=1e-9)
    assert similarity(a, b).value("bhattacharyya") == pytest.approx(
        similarity(b, a).value("bhattacharyya"), rel=1e-9
    )
    assert found.blocks is not None
    assert found.blocks["n_parameters"].sum() == len(x)
    # The whole follows from the blocks and their shares of the traces.
    weights = np.sqrt(found.blocks["share_a"] * found.blocks["share_b"])
    whole = (weights * found.blocks["bhattacharyya"]).sum()
    assert whole == pytest.approx(found.value("bhattacharyya"))


def test_an_overlap_per_layer():
    # Would catch: blocks out of order, or the whole's value in each row.
    a, b = _pair("kfac separate")
    found = similarity(a, b).blocks
    assert found["block"].tolist() == ["linear", "conv", "bias"]
    x, y = explicit(a), explicit(b)
    at = np.cumsum([0] + [math.prod(s) for s in a.identity.parameters.values()])
    places = dict(zip(a.identity.parameters, zip(at, at[1:], strict=False), strict=True))
    for row in found.itertuples():
        cut = slice(*places[row.block])
        assert row.bhattacharyya == pytest.approx(_overlap(x[cut, cut], y[cut, cut]), rel=1e-6)
        assert row.share_a == pytest.approx(np.trace(x[cut, cut]) / np.trace(x))


def test_tasks_with_no_input_in_common_do_not_overlap():
    # Would catch: an overlap of the gradients' factors alone.
    a = make("kfac ")
    sums = {k: t.clone() for k, t in a.sums.items()}
    apart = []
    for first in (0, 1):
        inputs = torch.zeros(4, 4, dtype=torch.float64)
        inputs[first, first] = 3.0
        apart.append(replace(a, sums=sums | {"linear:inputs.0": inputs}))
    assert similarity(*apart).value("bhattacharyya") == pytest.approx(0, abs=1e-9)
    assert similarity(*apart).value("cosine") == 0


def test_what_a_structure_does_not_have_is_refused():
    # Would catch: a number for what has no formula, such as eigenvalues compared in two bases.
    a, b = make("ekfac joint"), make("ekfac joint", ids="vwxyz", seed=1)
    found = similarity(a, b)
    assert found.to_frame()["metric"].tolist() == ["cosine"]
    with pytest.raises(ParameterError, match="equal eigenvectors.*basis="):
        found.value("bhattacharyya")
    with pytest.raises(ParameterError, match='ranks and top sets.*structure="diagonal"'):
        similarity(*_pair("kfac joint")).value("spearman")
    with pytest.raises(IdentityError, match="structure"):
        similarity(make("kfac joint"), make("ekfac joint"))
    with pytest.raises(IdentityError, match="parameters differ"):
        similarity(make("kfac separate"), make("kfac joint"))
    other = replace(b.identity, model_fingerprint="n")
    with pytest.raises(IdentityError, match="model_fingerprint"):
        similarity(a, replace(b, identity=other))
    assert similarity(a, replace(b, identity=other), across_models=True).value("cosine") > 0


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama-untied"])
def test_halves_give_a_ceiling_on_models(name):
    # Would catch: halves of the wrong task, a ceiling missing for matrices.
    case = models.case(name)
    data = rows.examples(case.rows)
    options = {"structure": "kfac", "halves": True, "progress": False}
    a = fs.estimate(case.model, data, **options)
    b = fs.estimate(case.model, data, fisher_type="empirical", **options)
    found = similarity(a, b)
    frame = found.to_frame().set_index("metric")
    np.testing.assert_allclose(frame["value"], 1, rtol=1e-6)
    ceiling = similarity(*a.halves)
    for metric in ("cosine", "bhattacharyya"):
        assert frame.loc[metric, "ceiling"] == pytest.approx(ceiling.value(metric))
        assert frame.loc[metric, "ceiling"] < 0.9999
        assert frame.loc[metric, "low"] <= frame.loc[metric, "halves"] <= frame.loc[metric, "high"]
    assert frame["floor"].isna().all()
    assert found.outcome == "ok"
