"""KFAC and EKFAC together: the eigenbasis, the spectra, and what is computed only once."""

import numpy as np
import pytest
import torch

from fisherscope.structures import EKFACFisher, KFACFisher
from fisherscope.structures import factors as factor_module
from structures.matrices import CASES, Case, explicit, make, turned

KFACS = [name for name in CASES if name.startswith("kfac")]


def twin(case, fisher) -> Case:
    return Case(f"e{CASES[case].structure}", turned(fisher.layout))


def fitted(fisher, case) -> EKFACFisher:
    """The EKFAC of the same matrix: eigenvalues read off its explicit form."""
    basis = fisher.eigenbasis()
    kept = {n: fisher.sums[n] for b in fisher.layout if b.kind == "diagonal" for n in b.names}
    values = {}
    for block in fisher.blocks:
        if block.layout.factored:
            scale = fisher.sums[f"{block.layout.inputs}:rows"]
            q, m = ({}, {})
            for side, prefix in (("g", f"{block.layout.names[0]}:gradients"),
                                 ("a", f"{block.layout.inputs}:inputs")):  # fmt: skip
                keys = sorted(k for k in basis if k.rpartition(".")[0] == prefix)
                q[side] = torch.block_diag(*(basis[k] for k in keys))
                m[side] = torch.block_diag(*(fisher.sums[k] for k in keys))
            diagonals = [(q[s].T @ m[s] @ q[s]).diagonal() for s in "ga"]
            values[f"{block.layout.names[0]}:eigenvalues"] = torch.outer(*diagonals) / scale
    return make(twin(case, fisher), sums={**basis, **kept, **values})


@pytest.mark.parametrize("case", KFACS)
def test_the_eigenbasis_diagonalises(case):
    # Catches: eigenvectors in rows, missing pieces, a basis under the wrong key; any of them
    # and the same matrix does not come back.
    fisher = make(case)
    assert isinstance(fisher, KFACFisher)
    same = fitted(fisher, case)
    expected = {k for k in fisher.sums if ":" in k and not k.endswith("rows")}
    assert set(fisher.eigenbasis()) == expected
    np.testing.assert_allclose(explicit(same), explicit(fisher), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(same.eigenvalues().numpy(), fisher.eigenvalues().numpy(), rtol=1e-6)
    assert same.inner(same) == pytest.approx(fisher.inner(fisher), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_eigenbasis_keeps_the_type_of_the_sums_and_is_a_copy(dtype):
    # Catches: twice the memory on disk, and a caller who changes the cache.
    fisher = make("kfac joint", dtype=dtype)
    basis = fisher.eigenbasis()
    assert {t.dtype for t in basis.values()} == {dtype}
    before = fisher.logdet(damping=0.1), fisher.solve({"bias": torch.ones(3)}, damping=0.1)
    for tensor in basis.values():
        tensor.zero_()
    assert fisher.logdet(damping=0.1) == before[0]
    again = fisher.solve({"bias": torch.ones(3)}, damping=0.1)
    assert all(torch.equal(again[n], t) for n, t in before[1].items())


@pytest.mark.parametrize("case", KFACS)
def test_every_factor_is_decomposed_once(case, monkeypatch):
    # Catches: a decomposition per call, or per layer that shares an input factor: q, k and v
    # would triple the time.
    names = []
    real = factor_module.symmetric_eigen
    monkeypatch.setattr(
        factor_module, "symmetric_eigen", lambda m, name: names.append(name) or real(m, name)
    )
    fisher = make(case)
    v = {n: torch.ones(s) for n, s in fisher.identity.parameters.items()}
    fisher.matvec(v), fisher.quadratic(v), fisher.trace(), fisher.inner(fisher)
    assert names == []
    for _ in range(2):
        fisher.solve(v, damping=0.1), fisher.logdet(damping=0.1), fisher.sample(damping=0.1)
        fisher.eigenbasis(), fisher.eigenvalues()
    pieces = {k for k in fisher.sums if ":" in k and not k.endswith("rows")}
    assert sorted(names) == sorted(pieces)


def test_a_sum_decomposes_its_own_factors():
    # Catches: a cache that survives addition.
    one, two = make("kfac joint"), make("kfac joint", seed=1, ids="xyz")
    one.logdet(damping=0.1)
    joined = one + two
    expected = np.linalg.slogdet(explicit(joined) / 8 + 0.1 * np.eye(15))[1]
    assert joined.logdet(damping=0.1) == pytest.approx(expected, rel=1e-9)
