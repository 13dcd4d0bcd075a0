"""Products with vectors against explicit matrices, on attention models with default kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator

import fisherscope as fs
from fisherscope.products import first_order
from oracles import brute, matrix, models, quantised, rows

CASES = ("mlp", "mlp-regression", "layerscale", "mixed", "gpt2", "llama-tied", "bert")
KINDS = {
    "empirical": ({}, lambda name: matrix.empirical(name, "example")),
    "token": ({"unit": "token"}, lambda name: matrix.empirical(name, "token")),
    "mc": ({"fisher_type": "mc", "draws": 2, "seed": 3}, lambda n: matrix.sampled(n, 3, 2)),
    "type-2": ({"fisher_type": "type-2"}, matrix.expected),
}


def directions(model: torch.nn.Module, count: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(count, *p.shape, generator=g, dtype=torch.float64)
        for n, p in model.named_parameters()
    }


def flat(v: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten(1).double() for t in v.values()], 1)


def close(found: torch.Tensor, truth: torch.Tensor, bound: float = 1e-5) -> None:
    assert float((found - truth).norm()) <= bound * float(truth.norm())


def n_tokens(case: models.Case) -> int:
    return sum(len(brute.supervised(row, case.likelihood)[0]) for row in case.rows)


# Planted: a wrong sign, draws that meet, vectors or examples that change places, the inner
# product of the last use only, weights of the last batch kept, parts of a batch left out, the
# count of draws left out, tokens counted as examples. Would catch too: a tied parameter's use
# left out on either side, a slow parameter forgotten.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in CASES
        for kind in KINDS
        # For language models the exact expectation is the business of curvature="ggn".
        if kind != "type-2" or name not in {"gpt2", "llama-tied"}
    ],
)
def test_fisher_products_are_those_of_the_scores(name, kind):
    case = models.case(name)
    options, scores = KINDS[kind]
    op = fs.operator(case.model, rows.examples(case.rows), batch_size=2, **options)
    v = directions(case.model, 2)
    s = scores(name)
    units = n_tokens(case) if kind == "token" else len(case.rows)
    assert op.n_units == units
    truth = (flat(v) @ s.T) @ s / (units * options.get("draws", 1))
    found = flat(op.matvec(v))
    close(found, truth)
    one = op.matvec({n: t[0] for n, t in v.items()})
    close(torch.cat([t.reshape(-1) for t in one.values()]), truth[0])
    delta = {n: t[1] for n, t in v.items()}
    assert op.quadratic(delta) == pytest.approx(float((flat(v)[1] * truth[1]).sum()), rel=1e-5)


# Planted: no −ppᵀ, masked tokens left in, the first vector for all, the last batch only, twice
# the curvature of a regression, no plain attention kernel, examples that mix in a batch.
@pytest.mark.parametrize("name", CASES)
def test_ggn_products_equal_the_exact_expectation(name):
    case = models.case(name)
    op = fs.operator(case.model, rows.examples(case.rows), curvature="ggn", batch_size=3)
    v, s = directions(case.model, 2), matrix.expected(name)
    truth = (flat(v) @ s.T) @ s / len(case.rows)
    close(flat(op.matvec(v)), truth, 1e-4)
    assert all(not p.requires_grad or p.grad is None for p in case.model.parameters())


# Planted: the mean instead of the sum, the GGN in its place (also as labels that the model
# agrees with), one tensor's gradient left out. Central differences of plain gradients, in float64.
@pytest.mark.parametrize("name", ["mlp-regression", "layerscale", "gpt2", "bert", "llama-untied"])
def test_hessian_products_are_differences_of_gradients(name):
    case = models.case(name)
    op = fs.operator(case.model, rows.examples(case.rows), curvature="hessian", batch_size=3)
    v = directions(case.model, 1)
    for path, module in case.model.named_modules():
        if getattr(module, "padding_idx", None) is not None:
            # Autograd defines the derivative of the padding row as zero.
            v[f"{path}.weight"][:, module.padding_idx] = 0
    twin = brute.double(case.model)
    own = brute.parameters(twin)

    def gradient(step: float) -> torch.Tensor:
        with torch.no_grad():
            for n, p in own.items():
                p.add_(v[n][0], alpha=step)
        total = sum(
            flat({n: g[None] for n, g in s.items()})[0]
            for row in case.rows
            for s in brute.scores(twin, row, case.likelihood, "example")
        )
        with torch.no_grad():
            for n, p in own.items():
                p.add_(v[n][0], alpha=-step)
        return total

    step = 1e-4
    truth = (gradient(step) - gradient(-step)) / (2 * step) / len(case.rows)
    found = flat(op.matvec(v))[0]
    close(found, truth, 1e-3)


# Planted: parameters that the vector does not name left out of the product.
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "hessian"])
def test_absent_names_count_as_zero(curvature):
    case = models.case("layerscale")
    op = fs.operator(case.model, rows.examples(case.rows), curvature=curvature)
    v = {n: t[0] for n, t in directions(case.model, 1).items()}
    some = {n: t * (n in {"temperature", "head.weight"}) for n, t in v.items()}
    whole = op.matvec(some)
    found = op.matvec({n: v[n] for n in ("head.weight", "temperature")})
    assert list(found) == list(whole) == list(v)
    assert all(float(t.norm()) > 0 for t in whole.values())
    for n, product in found.items():
        close(product, whole[n])


# Planted: only the first part taken where a batch is cut because whole gradients are large.
def test_a_batch_in_parts_has_the_same_products(monkeypatch):
    case = models.case("layerscale")
    op = fs.operator(case.model, rows.examples(case.rows))
    v = directions(case.model, 2)
    whole = flat(op.matvec(v))
    monkeypatch.setattr(first_order, "_SLOW_BYTES", 1)
    close(flat(op.matvec(v)), whole)


# Planted: a score that is not finite added to the product; the first example blamed for it.
def test_the_example_that_is_not_finite_is_named():
    case = models.case("mlp")
    data = [
        rows.Row(r.id, {"0": r.inputs["0"] * float("nan")}, r.labels) if r.id == "row-4" else r
        for r in case.rows
    ]
    op = fs.operator(case.model, rows.examples(data))
    with pytest.raises(fs.NonFiniteError, match="'row-4'"):
        op.matvec({n: t[0] for n, t in directions(case.model, 1).items()})


# Planted: sums made in the caller's inference mode, which nothing can be added to later.
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "hessian"])
def test_inside_inference_mode(curvature):
    case = models.case("mlp")
    with torch.inference_mode():
        op = fs.operator(case.model, rows.examples(case.rows), curvature=curvature)
        found = flat(op.matvec(directions(case.model, 2)))
    outside = fs.operator(case.model, rows.examples(case.rows), curvature=curvature)
    close(found.clone(), flat(outside.matvec(directions(case.model, 2))))


# Planted: second derivatives in the integers themselves, of which there are none: zeros.
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "hessian"])
def test_products_of_quantised_weights(curvature):
    torch.manual_seed(0)
    model = models.randomise(models.qwen2())
    names = quantised.quantise(model, "nibbles", ("q_proj", "down_proj"))
    twin = quantised.unquantised(model)
    data = rows.examples(rows.text())
    v = {n: t for n, t in directions(twin, 2).items() if n in names}
    found, truth = (
        fs.operator(m, data, curvature=curvature, parameters=names).matvec(v) for m in (model, twin)
    )
    assert list(found) == list(truth)
    close(flat(found), flat(truth), 1e-3)


# Planted: probabilities of a bf16 model rounded to bf16 before 1 − p is taken. Every number
# here but the probabilities is exact in bf16.
def test_the_curvature_of_sure_outputs_of_a_bf16_model():
    logits = torch.tensor([8.0, 1.0, 0.0, -2.0])
    model = torch.nn.Linear(1, 4, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.copy_(logits[:, None])
    data = (torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([0]))
    u = torch.tensor([1.0, 2.0, -4.0, 8.0])
    op = fs.operator(model, data, curvature="ggn", likelihood="classification")
    found = op.matvec({"weight": u[:, None]})["weight"][:, 0]
    p = logits.double().softmax(0)
    truth = p * (u - p @ u.double())
    assert float(((found - truth) / truth).abs().max()) <= 2**-8


# Would catch: a flattening in another order; an operator that scipy can't use.
def test_scipy_and_spectra():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    op = fs.operator(case.model, data)
    linear = op.to_scipy()
    assert isinstance(linear, LinearOperator) and linear.shape == op.shape
    dense = fs.estimate(case.model, data, structure="dense", progress=False).dense().numpy()
    assert np.allclose(linear.matmat(np.eye(op.shape[0])), dense, atol=1e-6)
    pairs = fs.spectrum.top_eigenpairs(op, k=3)
    assert np.allclose(sorted(pairs.eigenvalues), np.linalg.eigvalsh(dense)[-3:], rtol=1e-4)


# Would catch: KL that the quadratic form does not predict: what a Fisher is at all. With the
# model's own logits, padding and masked prompts.
@pytest.mark.parametrize("name", ["gpt2", "llama-untied", "bert-mlm"])
def test_half_the_quadratic_form_is_the_divergence(name):
    case = models.case(name)
    data = rows.LAYOUTS["left"](case.rows)
    op = fs.operator(case.model, data, curvature="ggn", likelihood=case.likelihood)
    twin, moved = brute.double(case.model), brute.double(case.model)
    delta = {n: 1e-4 * t[0] for n, t in directions(case.model, 1).items()}
    with torch.no_grad():
        for n, p in moved.named_parameters():
            p.add_(delta[n])
    divergence = 0.0
    for row in case.rows:
        at, _ = brute.supervised(row, case.likelihood)
        p, q = (brute.outputs(m, row)[at].log_softmax(-1) for m in (twin, moved))
        divergence += float((p.exp() * (p - q)).sum().detach())
    assert op.quadratic(delta) * op.n_units / 2 == pytest.approx(divergence, rel=1e-3)


# Would catch: a second derivative that a kernel lacks surfacing as torch's own error.
def test_what_cannot_be_differentiated_twice_says_how():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

        def forward(self, x):
            q = self.layer(x).reshape(len(x), 1, 1, 8).expand(-1, 1, 2, 8)
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return self.head(fused(q, q, q)[0].mean(2)[:, 0])

    data = (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    op = fs.operator(Net(), data, curvature="hessian")
    with pytest.raises(fs.CoverageError, match="eager"):
        op.matvec({"layer.bias": torch.ones(8)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "jacobian"}, "is unknown"),
        ({"unit": "position"}, "no matrix"),
        # Planted: draws that nobody makes, but that divide the exact product.
        ({"curvature": "ggn", "fisher_type": "mc", "draws": 2}, "for curvature='fisher' only"),
        ({"curvature": "hessian", "fisher_type": "type-2"}, "for curvature='fisher' only"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(fs.ParameterError, match=message):
        fs.operator(torch.nn.Linear(2, 2), None, **options)
