"""Every structure against explicit scores, on every architecture: a new one is one line.

``S`` [units, parameters] are the scores of brute force in float64, root-weighted for the exact
expectation over labels; the Fisher matrix is ``SᵀS``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import fisherscope as fs
from fisherscope.structures.factors import piece_keys
from oracles import brute, matrix, models, rows

CASES = (
    "mlp",
    "mlp-regression",
    "gpt2",
    "llama-untied",
    "llama-tied",
    "bert",
    "lora",
    *models.TINY,
)
# Few enough parameters for whole matrices, few enough classes for all of them at every token.
WHOLE = ("mlp", "mlp-regression", *models.TINY)
LABELS = {
    "empirical": ({}, lambda name: matrix.empirical(name, "example")),
    "token": ({"unit": "token"}, lambda name: matrix.empirical(name, "token")),
    "mc": (
        {"fisher_type": "mc", "draws": 2, "seed": 3},
        lambda name: matrix.sampled(name, 3, 2),
    ),
    "type-2": ({"fisher_type": "type-2"}, matrix.expected),
}


@cache
def scores(name: str, labels: str) -> torch.Tensor:
    return LABELS[labels][1](name)


def vectors(name: str, fisher: fs.Fisher, s: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores cut by parameter: name to [units, numel]."""
    sizes = [p.numel() for p in brute.parameters(models.case(name).model).values()]
    cut = dict(zip(brute.parameters(models.case(name).model), s.split(sizes, 1), strict=True))
    return {n: cut[n] for n in fisher.identity.parameters}


@cache
def estimate(name: str, labels: str, structure: str) -> fs.Fisher:
    case, options = models.case(name), LABELS[labels][0]
    data = rows.examples(case.rows)
    return fs.estimate(case.model, data, structure=structure, progress=False, **options)


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
        for structure in ("dense", "block", "block(per=layer)", "diagonal", "grouped")
        for labels in LABELS
        if name in {*WHOLE, "bert"} or labels != "type-2"
        if name in WHOLE or structure != "dense"
    ],
)
def test_blocks_are_the_outer_products_of_scores(name, structure, labels):
    fisher = estimate(name, labels, structure)
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
@pytest.mark.parametrize("name", [*WHOLE, "bert"])
def test_type_2_is_the_hessian_of_the_linearised_model(name):
    case, bound = models.fresh(name), 1e-6 if "llama" in name else 1e-8
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
    fisher = estimate(name, "empirical", "kfac")
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


def divergence(name: str, delta: dict[str, torch.Tensor]) -> float:
    """KL(p(θ) ‖ p(θ + δ)) summed over all tokens, from the outputs of two models."""
    case, twin, total = models.case(name), brute.twin(name), 0.0
    moved = brute.double(twin)
    with torch.no_grad():
        for n, d in delta.items():
            brute.parameters(moved)[n].add_(d)
        for row in case.rows:
            before, after = (brute.outputs(m, row) for m in (twin, moved))
            if case.likelihood == "regression":
                total += float(0.5 * (before - after).square().sum())
                continue
            at, _ = brute.supervised(row, case.likelihood)
            p, q = (x.log_softmax(-1) for x in (before, after))
            kl = (p.exp() * (p - q)).sum(-1)
            total += float((kl[at] if case.likelihood.endswith("lm") else kl).sum())
    return total


# Would catch: a Fisher that is none: half the quadratic form along a step is the divergence that
# the step causes, with the model's own logits, masked prompts and batches padded on the left.
@pytest.mark.parametrize("structure", ["dense", "block(per=layer)"])
@pytest.mark.parametrize("name", WHOLE)
def test_half_the_quadratic_form_is_the_divergence(name, structure):
    case = models.case(name)
    data = (rows.LAYOUTS["left"] if name in models.TINY else rows.examples)(case.rows)
    fisher = fs.estimate(
        case.model, data, fisher_type="type-2", structure=structure, likelihood=case.likelihood,
        progress=False,
    )  # fmt: skip
    # Blocks know nothing of each other: a step within one of them at a time.
    steps = [tuple(fisher.identity.parameters)] if structure == "dense" else fisher.layout[:3]
    for step in steps:
        g = torch.Generator().manual_seed(0)
        shapes = {n: fisher.identity.parameters[n] for n in getattr(step, "names", step)}
        delta = {n: 1e-3 * torch.randn(s, generator=g).double() for n, s in shapes.items()}
        for path, module in case.model.named_modules():
            if getattr(module, "padding_idx", None) is not None and f"{path}.weight" in delta:
                # Autograd defines the derivative of looking up the padding row as zero.
                delta[f"{path}.weight"][module.padding_idx] = 0
        # There and back: the third order cancels.
        truth = sum(divergence(name, {n: sign * d for n, d in delta.items()}) for sign in (1, -1))
        assert fisher.quadratic(delta) * fisher.n_units == pytest.approx(truth, rel=1e-3)


# Would catch: eigenvalues of another basis than the one kept, of squares before the rotation, of
# the bias without its column; then also the trace is not the diagonal's.
@pytest.mark.parametrize("options", ["", "(widest=3)", "(bias=separate)"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", WHOLE)
def test_eigenvalues_are_the_second_moments_along_the_eigenvectors(name, labels, options):
    fisher = estimate(name, labels, "ekfac" + options)
    cut = vectors(name, fisher, scores(name, labels))
    for block in fisher.layout:
        if block.kind != "eigen" or models.case(name).vanishes(block.names[0]):
            continue
        g = cut[block.names[0]].reshape(-1, *fisher.identity.parameters[block.names[0]])
        g = g.mT if block.outputs_second else g
        if len(block.names) > 1:
            g = torch.cat([g, cut[block.names[1]].unsqueeze(2)], 2)
        q, r = (
            torch.block_diag(*(fisher.sums[k].double() for k in piece_keys(side, fisher.sums)))
            for side in (f"{block.names[0]}:gradients", f"{block.inputs}:inputs")
        )
        close(fisher.sums[f"{block.names[0]}:eigenvalues"], (q.T @ g @ r).square().sum(0))


# Would catch: eigenvalues that are not the exact second moments in the eigenbasis (then the
# trace differs from the diagonal's and the blocks'), also where one of two orders of contraction
# is taken.
@pytest.mark.parametrize(
    ("name", "options", "labels"),
    [
        (name, options, labels)
        for name in ("gpt2", "llama-untied", "bert", *WHOLE)
        for options, labels in (
            ("", "empirical"),
            ("", "mc"),
            ("(sharing=reduce)", "empirical"),
            ("(bias=separate)", "token"),
            ("(widest=7)", "empirical"),
            ("", "type-2"),
        )
        if name in WHOLE or labels != "type-2"
    ],
)
def test_traces_agree_and_ekfac_is_closer_than_kfac(name, options, labels):
    diagonal = estimate(name, labels, "diagonal")
    ekfac = estimate(name, labels, "ekfac" + options)
    assert ekfac.trace() == pytest.approx(diagonal.trace(), rel=1e-6)
    if name in WHOLE:
        block = estimate(name, labels, "block")
        assert block.trace() == pytest.approx(diagonal.trace(), rel=1e-6)
    assert ekfac.ledger.squares == pytest.approx(diagonal.ledger.squares, rel=1e-4, abs=1e-6)
    kfac = estimate(name, labels, "kfac" + options)
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


# Would catch: lengths of rows that aren't squared, or that mix positions: with one position an
# example, the ledger of Kronecker factors holds exact norms.
@pytest.mark.parametrize("name", ["mlp", "mlp-regression"])
def test_the_ledger_of_factors_is_exact_without_shared_positions(name):
    ledger = estimate(name, "empirical", "kfac").ledger
    exact = estimate(name, "empirical", "diagonal").ledger
    assert ledger.tensors == exact.tensors
    assert ledger.squares == pytest.approx(exact.squares, rel=1e-4, abs=1e-7)
