"""Every structure against explicit scores, on every architecture: a new one is one line.

``S`` [units, parameters] are the scores of brute force in float64, root-weighted for the exact
expectation over labels; the Fisher matrix is ``SᵀS``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fisherscope as fs
from oracles import brute, matrix, models, rows

SMALL = ("mlp", "mlp-regression", "gpt2", "llama-untied", "llama-tied", "bert", "lora")
CASES = tuple(name for name in SMALL if name in models.NAMES)
LABELS = {
    "empirical": ({}, lambda name: matrix.empirical(name, "example")),
    "token": ({"unit": "token"}, lambda name: matrix.empirical(name, "token")),
    "mc": (
        {"fisher_type": "mc", "draws": 2, "seed": 3},
        lambda name: matrix.sampled(name, 3, 2),
    ),
    "type-2": ({"fisher_type": "type-2"}, matrix.expected),
}
_scores: dict[tuple[str, str], torch.Tensor] = {}


def scores(name: str, labels: str) -> torch.Tensor:
    if (name, labels) not in _scores:
        _scores[name, labels] = LABELS[labels][1](name)
    return _scores[name, labels]


def vectors(name: str, fisher: fs.Fisher, s: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores cut by parameter: name to [units, numel]."""
    sizes = [p.numel() for p in brute.parameters(models.case(name).model).values()]
    cut = dict(zip(brute.parameters(models.case(name).model), s.split(sizes, 1), strict=True))
    return {n: cut[n] for n in fisher.identity.parameters}


def estimate(name: str, labels: str, **options) -> fs.Fisher:
    case = models.case(name)
    data = rows.examples(case.rows)
    return fs.estimate(case.model, data, progress=False, **LABELS[labels][0], **options)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    assert error <= bound, f"relative error {error:.1e}"


# Would catch: a block whose scores are squared use by use or set by set, sets of labels that
# meet in one outer product, columns that are no root, tokens whose columns are not kept
# apart (cross terms), a slow parameter whose scores belong to another example or set.
@pytest.mark.parametrize(
    ("name", "structure", "labels"),
    [
        (name, structure, labels)
        for name in CASES
        for structure in ("block", "block(per=layer)", "diagonal", "grouped")
        for labels in LABELS
        # Columns times tokens take a while: one language model shows both kinds of block.
        if labels != "type-2" or name in {"mlp", "mlp-regression", "bert"}
        or (name, structure) in {("llama-tied", "block"), ("gpt2", "diagonal")}
    ],
)  # fmt: skip
def test_blocks_are_the_outer_products_of_scores(name, structure, labels):
    fisher = estimate(name, labels, structure=structure)
    cut = vectors(name, fisher, scores(name, labels))
    if structure == "diagonal":
        for n, s in cut.items():
            if not models.case(name).vanishes(n):
                close(fisher.sums[n].reshape(-1), s.square().sum(0))
        return
    if structure == "grouped":
        assert fisher.trace("sum") * fisher.draws == pytest.approx(
            float(scores(name, labels)[:, :].square().sum())
            if len(cut) == len(brute.parameters(models.case(name).model))
            else sum(float(s.square().sum()) for s in cut.values()),
            rel=1e-5,
        )
        return
    for block in fisher.layout:
        if not all(models.case(name).vanishes(n) for n in block.names):
            s = torch.cat([cut[n] for n in block.names], 1)
            close(fisher.sums[f"{block.names[0]}:matrix"], s.T @ s)


# Would catch: type-2 that is not the generalised Gauss-Newton matrix (a missing −ppᵀ, masked
# tokens counted, probabilities of the wrong row). The Hessian of the linearised model shares
# nothing with it. In float64, but for Llama, whose norms and rotations stay in float32.
@pytest.mark.parametrize(
    ("name", "bound"),
    [("mlp", 1e-8), ("mlp-regression", 1e-8), ("gpt2", 1e-8), ("bert", 1e-8), ("llama-tied", 1e-6)],
)
def test_type_2_is_the_hessian_of_the_linearised_model(name, bound):
    case = models.fresh(name)
    twin = case.model.double()
    data = [
        replace(e, inputs={n: wide(x) for n, x in e.inputs.items()})
        for e in rows.examples(case.rows)
    ]
    truth = matrix.linearised_hessian(name)
    if truth.shape[0] <= 2500:
        fisher = fs.estimate(
            twin, data, fisher_type="type-2", structure="dense", likelihood=case.likelihood,
            progress=False,
        )  # fmt: skip
        (found,) = fisher.sums.values()
        close(found, truth, bound)
    diagonal = fs.estimate(
        twin, data, fisher_type="type-2", likelihood=case.likelihood, progress=False
    )
    found = torch.cat([t.reshape(-1) for t in diagonal.sums.values()])
    close(found, truth.diagonal(), bound)


# Would catch: factors with padding or prompt rows, factors of recomputed inputs, a Conv1D
# transposed, a bias without its ones, an input shared by layers that don't share it, a factor
# scaled by the number of rows or of draws.
@pytest.mark.parametrize("name", CASES)
def test_factors_are_those_of_plain_hooks(name):
    case = models.case(name)
    fisher = estimate(name, "empirical", structure="kfac")
    truth = matrix.kronecker(name)
    kronecker = [block for block in fisher.layout if block.kind == "kronecker"]
    assert kronecker
    for block in kronecker:
        g, a, count = truth[block.names[0].removesuffix(".weight")]
        close(fisher.sums[f"{block.inputs}:inputs.0"], a)
        assert float(fisher.sums[f"{block.inputs}:rows"]) == count
        if not case.vanishes(block.names[0]):
            close(fisher.sums[f"{block.names[0]}:gradients.0"], g)


# Would catch: a batch that leaks into the factors: padding rows, means over batches.
@pytest.mark.parametrize("structure", ["kfac", "kfac(sharing=reduce)", "ekfac", "block"])
@pytest.mark.parametrize("name", ["llama-untied", "bert"])
def test_batches_and_padding_do_not_matter(name, structure):
    case = models.case(name)
    one, many = (
        fs.estimate(case.model, data, structure=structure, batch_size=size, progress=False)
        for data, size in ((rows.examples(case.rows), 1), (rows.LAYOUTS["left"](case.rows), 4))
    )
    if structure == "ekfac":  # the signs of eigenvectors are free
        assert many.trace() == pytest.approx(one.trace(), rel=1e-5)
        for (n, found), expected in zip(
            many.diagonal().items(), one.diagonal().values(), strict=True
        ):
            if not case.vanishes(n):
                close(found, expected, 1e-4)
        return
    for key, expected in one.sums.items():
        # A shift of all keys changes no attention: their gradients sum to zero over positions.
        reduced = structure.endswith("reduce)") and ".key.weight:gradients" in key
        if not reduced and not case.vanishes(key.partition(":")[0]):
            close(many.sums[key], expected.double())


# Would catch: eigenvalues that are not the exact second moments in the eigenbasis (then the
# trace differs from the diagonal's), also where one of two orders of contraction is taken.
@pytest.mark.parametrize(
    ("options", "labels"),
    [("", "empirical"), ("", "mc"), ("(sharing=reduce)", "empirical"),
     ("(bias=separate)", "token"), ("(widest=7)", "empirical"), ("", "type-2")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["mlp", "mlp-regression", "gpt2", "llama-untied", "bert"])
def test_traces_agree_and_ekfac_is_closer_than_kfac(name, options, labels):
    if labels == "type-2" and models.case(name).likelihood.endswith("lm"):
        labels = "mc"  # the same code; a column for every class of every token takes long
        options = "(bias=separate)"
    diagonal = estimate(name, labels)
    ekfac = estimate(name, labels, structure="ekfac" + options)
    assert ekfac.trace() == pytest.approx(diagonal.trace(), rel=1e-6)
    assert ekfac.ledger.squares == pytest.approx(diagonal.ledger.squares, rel=1e-4, abs=1e-6)
    kfac = estimate(name, labels, structure="kfac" + options)
    cut = vectors(name, ekfac, scores(name, labels))
    for mine, theirs in zip(ekfac.blocks, kfac.blocks, strict=True):
        if mine.layout.kind != "eigen" or len(mine.layout.names) > 1:
            continue
        n = mine.layout.names[0]
        s = cut[n]
        if models.case(name).vanishes(n) or s.shape[1] > 600:
            continue
        if mine.layout.outputs_second:
            shape = models.case(name).model.get_parameter(n).shape
            s = s.reshape(-1, *shape).mT.reshape(len(s), -1)
        truth = s.T @ s
        eye = torch.eye(len(truth), dtype=torch.float64).reshape(-1, *mine.view.shape)
        errors = [
            float((block.multiply(eye).reshape(len(truth), -1).double() - truth).norm())
            for block in (mine, theirs)
        ]
        assert errors[0] <= errors[1] + 1e-6 * float(truth.norm()), n


# Would catch: parts whose sums differ from those of one pass, columns of the ledger that
# change places, a limit that is not kept.
@pytest.mark.parametrize("structure", ["diagonal", "kfac", "ekfac", "block"])
def test_a_memory_limit_changes_nothing(structure):
    case = models.case("llama-untied")
    data = rows.examples(case.rows)
    options = {"structure": structure, "progress": False}
    whole = fs.estimate(case.model, data, **options)
    limit = {"diagonal": 12_000, "block": 3_000_000}.get(structure, 20_000)
    plan = fs.plan(case.model, data, structure=structure, memory_limit=limit)
    assert plan.rounds > (2 if structure == "ekfac" else 1)
    assert plan.sums_bytes <= limit * (2 if structure == "ekfac" else 1)
    parts = fs.estimate(case.model, data, memory_limit=limit, **options)
    assert parts.identity == whole.identity and set(parts.coverage) == set(whole.coverage)
    assert (parts.ledger.squares == whole.ledger.squares).all()
    if structure != "ekfac":
        for key, expected in whole.sums.items():
            if key in parts.sums:
                assert torch.equal(parts.sums[key], expected), key
    assert parts.trace() == pytest.approx(whole.trace(), rel=1e-9)


# Would catch: combinations that are silently something else.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "batch"}, "not a Fisher"),
        ({"unit": "batch", "fisher_type": "type-2"}, "fisher_type='mc'"),
        ({"unit": "batch", "fisher_type": "mc", "structure": "kfac"}, "one squared sum per batch"),
        ({"unit": "position", "structure": "dense"}, "score at one layer"),
        ({"unit": "position", "structure": "kfac(sharing=reduce)"}, "sharing='expand'"),
        ({"sampling": "signs"}, "fisher_type='mc'"),
        ({"structure": "kronecker"}, "is unknown"),
        ({"memory_limit": 100}, "too small"),
        ({"memory_limit": "some"}, "is no size"),
        ({"structure": "kfac", "basis": object()}, "for structure='ekfac'"),
    ],
)
def test_what_makes_no_sense_says_so(options, message):
    case = models.case("mlp")
    with pytest.raises(fs.ParameterError, match=message):
        fs.estimate(case.model, rows.examples(case.rows), progress=False, **options)
