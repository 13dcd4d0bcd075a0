"""Every structure against the explicit matrix that it stands for, in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fisherscope.errors import IdentityError, NonFiniteError, ParameterError
from fisherscope.structures import BlockLayout
from structures.matrices import BLOCKWISE, CASES, SHAPES, Case, dense, diag, explicit, kron, make

# What float32 results of float64 work may differ by; eigenvectors stored in float32 are
# orthogonal only up to their rounding.
CLOSE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 2e-5, "atol": 2e-5}}
DIAGONAL = [name for name in CASES if name != "grouped"]


def flat(fisher, v) -> np.ndarray:
    shapes = fisher.identity.parameters
    return np.concatenate([v[n].double().numpy().reshape(*_lead(v[n], s), -1)
                           for n, s in shapes.items()], -1)  # fmt: skip


def _lead(tensor, shape):
    return tensor.shape[: tensor.ndim - len(shape)]


def vector(fisher, seed=0, lead=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = fisher.identity.parameters
    return {n: torch.randn((*lead, *s), generator=g, dtype=dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_every_verb_against_the_explicit_matrix(case, dtype):
    # Catches: G and A swapped, a transposed weight read as rows, a bias as first column, R or
    # the draws forgotten, pieces out of order, damping before division, one factor's
    # eigenvectors on the wrong side.
    kind = {"dtype": dtype, "unit": "token", "draws": 2}
    fisher, other = make(case, **kind), make(case, seed=9, ids="vwxyz", **kind)
    matrix = explicit(fisher) / fisher.n_tokens / 2
    theirs = explicit(other) / other.n_tokens / 2
    damped = matrix + 0.3 * np.eye(len(matrix))
    v, close = vector(fisher, 1, dtype=dtype), CLOSE[dtype]
    x = flat(fisher, v)
    np.testing.assert_allclose(flat(fisher, fisher.matvec(v)), matrix @ x, **close)
    solved = fisher.solve(v, damping=0.3)
    np.testing.assert_allclose(flat(fisher, solved), np.linalg.solve(damped, x), **close)
    assert {t.dtype for t in solved.values()} == {dtype}
    inverse = fisher.inverse_diagonal(damping=0.3)
    np.testing.assert_allclose(flat(fisher, inverse), np.linalg.inv(damped).diagonal(), **close)
    assert fisher.quadratic(v) == pytest.approx(x @ matrix @ x, rel=close["rtol"])
    logdet = np.linalg.slogdet(damped)[1]
    assert fisher.logdet(damping=0.3) == pytest.approx(logdet, rel=close["rtol"])
    assert fisher.inner(other) == pytest.approx((matrix * theirs).sum(), rel=close["rtol"])
    assert fisher.inner(fisher) == pytest.approx((matrix**2).sum(), rel=close["rtol"])
    np.testing.assert_allclose(fisher.dense().numpy(), matrix, **close)


@pytest.mark.parametrize("per", ["unit", "example", "token", "sum"])
@pytest.mark.parametrize("case", DIAGONAL)
def test_diagonal_traces_and_spectrum_per_every_count(case, per):
    # Catches: a joint bias's trace counted with the weight's, fitted eigenvalues read as the
    # diagonal, and per= that only some of the three obey.
    fisher = make(case, draws=3)
    count = {"unit": 5, "example": 5, "token": fisher.n_tokens, "sum": 1}[per] * 3
    matrix = explicit(fisher) / count
    diagonal = fisher.diagonal(per)
    assert {n: tuple(t.shape) for n, t in diagonal.items()} == fisher.identity.parameters
    assert list(diagonal) == list(fisher.identity.parameters)
    np.testing.assert_allclose(flat(fisher, diagonal), matrix.diagonal(), rtol=1e-12)
    parts = {n: t.sum().item() for n, t in diagonal.items()}
    assert fisher.traces(per) == pytest.approx(parts, rel=1e-12)
    assert fisher.trace(per) == pytest.approx(matrix.trace(), rel=1e-12)
    if case in BLOCKWISE:
        expected = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(fisher.eigenvalues(per).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_solving_undoes_multiplying_also_without_damping(case):
    # Catches: an inverse that is only approximate, or that damps although nobody asked.
    fisher = make(case)
    v = vector(fisher, 2)
    back = fisher.solve(fisher.matvec(v), damping=0)
    np.testing.assert_allclose(flat(fisher, back), flat(fisher, v), rtol=1e-6, atol=1e-8)
    damped = {n: t + 0.7 * v[n] for n, t in fisher.matvec(v).items()}
    back = fisher.solve(damped, damping=0.7)
    np.testing.assert_allclose(flat(fisher, back), flat(fisher, v), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_one_vector_after_another(case):
    # Catches: a batch dimension taken for the outputs, above all of a transposed weight.
    fisher = make(case)
    v = vector(fisher, 3, lead=(3,))
    for verb in (fisher.matvec, lambda x: fisher.solve(x, damping=0.1)):
        together = verb(v)
        for i in range(3):
            alone = verb({name: t[i] for name, t in v.items()})
            for name, tensor in alone.items():
                torch.testing.assert_close(together[name][i], tensor, rtol=1e-12, atol=1e-12)
    with pytest.raises(ParameterError, match="shape"):
        fisher.quadratic(v)
    if len(v) == 1:
        return
    one, two = list(v)[:2]
    with pytest.raises(ParameterError, match=rf"{two!r}.*batch of \(2,\).*{one!r}"):
        fisher.matvec({one: v[one], two: v[two][:2]})


@pytest.mark.parametrize("case", CASES)
def test_absent_parameters_count_as_zero(case):
    # Catches: a block dropped because its bias was not given, a KeyError, and neighbours'
    # blocks in the result.
    fisher = make(case)
    matrix, v = explicit(fisher) / 5, vector(fisher, 4)
    for name in v:
        part = {name: v[name]}
        zeros = {n: torch.zeros_like(t) for n, t in v.items()}
        x = flat(fisher, zeros | part)
        found = fisher.matvec(part)
        touched = next((b.names for b in fisher.layout if name in b.names), (name,))
        assert list(found) == [n for n in fisher.identity.parameters if n in touched]
        assert list(found) == list(fisher.solve(part, damping=1.0))
        np.testing.assert_allclose(flat(fisher, zeros | found), matrix @ x, rtol=1e-9, atol=1e-12)
        assert fisher.quadratic(part) == pytest.approx(x @ matrix @ x, rel=1e-9)
    assert fisher.matvec({}) == {}


@pytest.mark.parametrize("case", BLOCKWISE)
@pytest.mark.parametrize("verb", ["quadratic", "matvec", "solve"])
def test_vectors_that_do_not_fit_are_named(case, verb):
    # Catches: dropping unknown names without a word, and shapes that broadcast.
    fisher = make(case)
    more = {"damping": 1.0} if verb == "solve" else {}
    name, shape = next(iter(fisher.identity.parameters.items()))
    with pytest.raises(ParameterError, match="'lm_head' is not covered"):
        getattr(fisher, verb)({"lm_head": torch.ones(3)}, **more)
    with pytest.raises(ParameterError, match=f"{name!r} has shape"):
        getattr(fisher, verb)({name: torch.ones(*shape, 2)}, **more)


@pytest.mark.parametrize("case", BLOCKWISE)
def test_vectors_promote_and_sums_stay_as_they_are(case):
    # Catches: sums or results widened for good, half-precision arithmetic, and gradients
    # carried along.
    fisher = make(case, dtype=torch.float32)
    before = {key: t.clone() for key, t in fisher.sums.items()}
    exact = fisher.matvec(vector(fisher, 5))
    assert {t.dtype for t in exact.values()} == {torch.float64}
    v = {n: t.bfloat16().requires_grad_() for n, t in vector(fisher, 5).items()}
    rounded = fisher.matvec(v)
    assert {(t.dtype, t.requires_grad) for t in rounded.values()} == {(torch.float32, False)}
    wide = fisher.matvec({n: t.detach().double() for n, t in v.items()})
    for name, tensor in rounded.items():
        torch.testing.assert_close(tensor, wide[name].float(), rtol=1e-6, atol=1e-6)
    fisher.logdet(damping=1.0)
    assert {k: t.dtype for k, t in fisher.sums.items()} == {k: t.dtype for k, t in before.items()}
    assert all(torch.equal(t, before[key]) for key, t in fisher.sums.items())
    assert {t.dtype for t in fisher.diagonal().values()} == {torch.float32}


def singular(case) -> tuple[object, int]:
    """The first block loses one direction of its outputs; and how many eigenvalues that is."""
    fisher = make(case)
    block, sums = fisher.layout[0], dict(fisher.sums)
    first, shapes = block.names[0], fisher.identity.parameters
    if block.kind == "diagonal":
        sums[first] = torch.zeros_like(sums[first])
        return make(CASES[case], sums=sums), sums[first].numel()
    if block.kind == "eigen":
        key = f"{first}:eigenvalues"
        sums[key] = sums[key].clone()
        sums[key][0] = 1e-35
        return make(CASES[case], sums=sums), sums[key].shape[1]
    key = f"{first}:matrix" if block.kind == "dense" else f"{first}:gradients.0"
    size = len(sums[key])
    g = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    away = torch.eye(size, dtype=torch.float64) - torch.outer(g, g) / g.dot(g)
    sums[key] = away @ sums[key] @ away
    if block.kind == "dense":
        return make(CASES[case], sums=sums), 1
    rows = shapes[first][1 if block.outputs_second else 0]
    elements = sum(math.prod(shapes[n]) for n in block.names)
    return make(CASES[case], sums=sums), elements // rows


@pytest.mark.parametrize("case", BLOCKWISE)
def test_a_singular_block_asks_for_damping(case):
    # Catches: rounding errors inverted (1e16 instead of an error), and a zero that is only
    # found when it is exact.
    fisher, null = singular(case)
    said = rf"singular: {null} of \d+ eigenvalues of the block {fisher.layout[0].names[0]}"
    for wanted in (
        lambda: fisher.solve(vector(fisher), damping=0),
        lambda: fisher.logdet(damping=0),
        lambda: fisher.sample(damping=0),
    ):
        with pytest.raises(ParameterError, match=said):
            wanted()
    matrix = explicit(fisher) / 5 + 1e-3 * np.eye(fisher.n_parameters)
    v = vector(fisher, 6)
    solved = np.linalg.solve(matrix, flat(fisher, v))
    np.testing.assert_allclose(flat(fisher, fisher.solve(v, damping=1e-3)), solved, rtol=1e-7)
    for damping in (-1.0, math.inf, math.nan):
        with pytest.raises(ParameterError, match="damping="):
            fisher.solve(v, damping=damping)


@pytest.mark.parametrize("rows", [0.0, 5.0])
def test_a_layer_without_rows_is_a_zero_block(rows):
    # Catches: 0 / 0 for a layer that no example reached.
    fisher = make("kfac ")
    sums = {k: t if k.endswith("rows") else t * 0 for k, t in fisher.sums.items()}
    sums["linear:rows"] = torch.tensor(rows, dtype=torch.float64)
    empty = make("kfac ", sums=sums)
    assert empty.trace() == empty.quadratic(vector(empty)) == 0
    assert empty.logdet(damping=2.0) == pytest.approx(12 * math.log(2))


@pytest.mark.parametrize("case", BLOCKWISE)
def test_addition_adds_sums_key_by_key(case):
    # Catches: numbers of rows or a shared factor added twice or not at all, eigenvectors
    # added, and a lost layout.
    one = make(case)
    more = make(case, seed=4, ids="xyz")
    basis = {k for k in one.sums if case.startswith("ekfac") and k[-2:-1] == "."}
    more = make(case, seed=4, ids="xyz", sums={**more.sums, **{k: one.sums[k] for k in basis}})
    joined = one + more
    assert joined.layout == one.layout
    assert set(joined.sums) == set(one.sums)
    for key, tensor in joined.sums.items():
        expected = one.sums[key] if key in basis else one.sums[key] + more.sums[key]
        assert torch.equal(tensor, expected), key
    assert joined.n_units == 8
    np.testing.assert_allclose(joined.dense().numpy(), explicit(joined) / 8, rtol=1e-9, atol=1e-9)


# Pieces of width 1 all have the same eigenvector.
@pytest.mark.parametrize("case", [c for c in CASES if c[0] == "e" and c[-1] != "1"])
def test_eigenvalues_in_other_bases_do_not_add_but_compare(case):
    # Catches: eigenvalues added over different eigenvectors, which is a sum of nothing; one
    # changed bit is enough.
    one, two = make(case), make(case, seed=1, ids="xyz")
    with pytest.raises(IdentityError, match=r"eigenvectors '.*' differ.*basis="):
        one + two
    key = next(k for k in one.sums if k.endswith("inputs.0"))
    nearly = one.sums[key].clone()
    nearly[0, 0] = torch.nextafter(nearly[0, 0], torch.tensor(9.0, dtype=torch.float64))
    near = make(case, ids="xyz", sums={**one.sums, key: nearly})
    with pytest.raises(IdentityError, match=key.replace(".", r"\.")):
        one + near
    assert one.inner(near) == pytest.approx(one.inner(make(case, ids="xyz")), rel=1e-12)


def test_unlike_blocks_do_not_mix():
    # Catches: adding or comparing what has the same parameters but other blocks, and pieces
    # of other sizes.
    one = make(Case("kfac", (kron("k"), kron("q", "bias"))))
    two = make(Case("kfac", (kron("k"), diag("bias"), kron("q", inputs="k"))), ids="xyz")
    for verb in (lambda: one + two, lambda: one.inner(two)):
        with pytest.raises(IdentityError, match=r"block 1 is .*'q', 'bias'.* and .*'bias'"):
            verb()
    cut = make("kfac widest 2")
    whole = make("kfac joint", ids="xyz")
    with pytest.raises(IdentityError, match="structure"):
        cut + whole
    uneven = dict(cut.sums)
    uneven |= {"linear:inputs.0": torch.eye(1).double(), "linear:inputs.1": torch.eye(3).double(),
               "linear:inputs.2": torch.eye(1).double()}  # fmt: skip
    other = make(CASES["kfac widest 2"], ids="xyz", sums=uneven)
    for verb in (lambda: cut + other, lambda: cut.inner(other)):
        with pytest.raises(IdentityError, match="different pieces"):
            verb()
    with pytest.raises(IdentityError, match="structure is 'kfac' and 'ekfac'"):
        make("kfac ").inner(make("ekfac "))


def test_sums_that_do_not_fit_the_layout_are_named():
    # Catches: factors of the wrong side, a bias without its column, missing and foreign keys.
    fisher = make("kfac joint")

    def replaced(**sums):
        merged = {**fisher.sums, **{k.replace("__", ":").replace("_0", ".0"): t
                                    for k, t in sums.items()}}  # fmt: skip
        return make("kfac joint", sums={k: t for k, t in merged.items() if t is not None})

    with pytest.raises(ParameterError, match=r"linear:inputs\.0"):
        replaced(linear__inputs_0=None)
    with pytest.raises(ParameterError, match="linear:rows"):
        replaced(linear__rows=None)
    with pytest.raises(ParameterError, match=r"linear:rows'\] must be a count in a float64"):
        replaced(linear__rows=torch.tensor(3.0))
    with pytest.raises(ParameterError, match="extra"):
        replaced(extra=torch.ones(3))
    with pytest.raises(ParameterError, match=r"inputs\.0'\] has shape \(4, 4\).* add up to 5"):
        replaced(linear__inputs_0=torch.eye(4))
    with pytest.raises(ParameterError, match=r"gradients\.0'\] has shape \(3,\)"):
        replaced(linear__gradients_0=torch.ones(3))
    with pytest.raises(ParameterError, match="bfloat16"):
        replaced(linear__gradients_0=torch.eye(3).bfloat16())
    whole = make("dense")
    with pytest.raises(ParameterError, match=r"linear:matrix.*\(3, 3\).*16 parameters"):
        make("dense", sums={**whole.sums, "linear:matrix": torch.eye(3)})
    fitted = make("ekfac joint")
    with pytest.raises(ParameterError, match=r"linear:eigenvalues.*\(3, 4\).*\(3, 5\)"):
        make("ekfac joint", sums={**fitted.sums, "linear:eigenvalues": torch.ones(3, 4)})
    mixed = make("kfac mixed")
    with pytest.raises(ParameterError, match=r"'scale'.*\(1,\).*\(4,\)"):
        make("kfac mixed", sums={**mixed.sums, "scale": torch.ones(1)})


@pytest.mark.parametrize(
    ("structure", "layout", "said"),
    [
        ("ekfac", (kron("linear"),), "EKFACFisher has blocks of the kinds.*kronecker block linear"),
        ("block", (kron("linear"),), "BlockFisher.*not the kronecker"),
        ("dense", (dense("linear"), dense("bias")), "one block over all parameters, not 2"),
        ("kfac", (kron("linear", "k_bias"),), "'k_bias' has shape.*3 outputs.*not its bias"),
        ("kfac", (kron("bias"), diag("linear")), "'bias' has shape .*two or more dimensions"),
        ("kfac", (), "'linear' to 0"),
        ("kfac", (kron("linear"), diag("linear")), "'linear' to 2"),
        ("diagonal", (diag("linear"),), "DiagonalFisher has no blocks"),
    ],
)  # fmt: skip
def test_layouts_that_mean_nothing_are_refused(structure, layout, said):
    # Catches: a parameter in no block or in two, and kinds that another structure keeps.
    held = {n: SHAPES[n] for n in ("linear", *(n for b in layout for n in b.names))}
    ones = torch.ones(())
    factor = {f"{n}:{k}": ones for n in held for k in ("gradients.0", "inputs.0", "rows")}
    factored = {b.names[0] for b in layout if b.factored}
    sums = {k: t for k, t in factor.items() if k.partition(":")[0] in factored}
    sums |= {n: torch.ones(held[n]) for b in layout if b.kind == "diagonal" for n in b.names}
    with pytest.raises(ParameterError, match=said):
        make(Case(structure, layout), sums=sums, parameters=held)


def test_identity_names_the_structure_in_canonical_text():
    # Catches: two spellings of one structure that then don't add up.
    fisher = make("kfac widest 2")
    for text in ("kfac( widest=2 )", "kfac(bias=joint,widest=2)", "ekfac"):
        changed = dataclasses.replace(fisher.identity, structure=text)
        with pytest.raises(IdentityError, match="canonical"):
            dataclasses.replace(fisher, identity=changed)
    changed = dataclasses.replace(fisher.identity, structure="kfac(depth=2)")
    with pytest.raises(ParameterError, match="depth"):
        dataclasses.replace(fisher, identity=changed)


def test_means_are_the_factors_as_means():
    # Catches: dividing eigenvectors, or A by the units instead of its rows.
    fisher = make("kfac mixed")
    means, rows = fisher.means(), fisher.sums["k:rows"]
    torch.testing.assert_close(means["k:gradients.0"], fisher.sums["k:gradients.0"] / 5)
    torch.testing.assert_close(means["k:inputs.0"], fisher.sums["k:inputs.0"] / rows)
    torch.testing.assert_close(means["scale"], fisher.sums["scale"] / 5)
    assert not any(key.endswith("rows") for key in means)
    fitted = make("ekfac ")
    means = fitted.means()
    torch.testing.assert_close(means["linear:eigenvalues"], fitted.sums["linear:eigenvalues"] / 5)
    assert torch.equal(means["linear:inputs.0"], fitted.sums["linear:inputs.0"])
    matrix = make("dense")
    torch.testing.assert_close(matrix.means()["linear:matrix"], matrix.sums["linear:matrix"] / 5)


def test_errors_of_factors_name_the_factor():
    # Catches: a NaN that spreads into all results of a solve without a word.
    fisher = make("kfac shared")
    broken = {**fisher.sums, "q:inputs.0": fisher.sums["q:inputs.0"] * math.nan}
    with pytest.raises(NonFiniteError, match=r"q:inputs\.0 holds NaN"):
        make("kfac shared", sums=broken).logdet(damping=1.0)
    broken = {**fisher.sums, "k:gradients.0": -fisher.sums["k:gradients.0"]}
    with pytest.raises(ParameterError, match=r"k:gradients\.0 has the negative eigenvalue"):
        make("kfac shared", sums=broken).logdet(damping=1.0)


def test_kronecker_blocks_never_become_matrices():
    # Catches: any [p, p] on the way: 240 000 parameters would need 429 GiB.
    g = torch.Generator().manual_seed(0)
    scores, inputs = (torch.randn(900, n, generator=g) for n in (400, 600))
    sums = {
        "w:gradients.0": scores.T @ scores,
        "w:inputs.0": inputs.T @ inputs,
        "w:rows": torch.tensor(900.0, dtype=torch.float64),
    }
    shape = {"w": (400, 600)}
    fisher = make(Case("kfac", (kron("w"),)), sums=sums, parameters=shape)
    v = {"w": torch.randn(400, 600, generator=g)}
    back = fisher.solve(fisher.matvec(v), damping=0.0)["w"]
    torch.testing.assert_close(back, v["w"], rtol=1e-2, atol=1e-2)
    assert fisher.sample(2, damping=1.0)["w"].shape == (2, 400, 600)
    assert len(fisher.eigenvalues()) == 240_000
    assert math.isfinite(fisher.logdet(damping=1.0) + fisher.inner(fisher) + fisher.trace())
    basis = fisher.eigenbasis()
    values = torch.outer(*(
        torch.einsum("ij,ik,kj->j", q, m, q)
        for q, m in ((basis[k], sums[k]) for k in ("w:gradients.0", "w:inputs.0"))
    )) / 900  # fmt: skip
    case = Case("ekfac", (BlockLayout("eigen", ("w",)),))
    fitted = make(case, sums={**basis, "w:eigenvalues": values}, parameters=shape)
    assert fitted.trace() == pytest.approx(fisher.trace(), rel=1e-4)
    torch.testing.assert_close(fitted.matvec(v)["w"], fisher.matvec(v)["w"], rtol=1e-3, atol=1e-1)
