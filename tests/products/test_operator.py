"""Products with vectors against explicit matrices, on attention models with default kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator

import fisherscope as fs
from oracles import brute, matrix, models, rows

CASES = ("mlp", "mlp-regression", "gpt2", "llama-tied", "bert")
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


# Would catch: products of a batch gradient, sets of labels that meet, a tied parameter's use
# left out on either side, a slow parameter forgotten, a wrong count.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in CASES
        for kind in KINDS
        # For language models the exact expectation is the business of curvature="ggn".
        if kind != "type-2" or name in {"mlp", "mlp-regression", "bert"}
    ],
)
def test_fisher_products_are_those_of_the_scores(name, kind):
    case = models.case(name)
    options, scores = KINDS[kind]
    op = fs.operator(case.model, rows.examples(case.rows), batch_size=2, **options)
    v = directions(case.model, 2)
    s = scores(name)
    units = op.n_units * options.get("draws", 1)
    truth = (flat(v) @ s.T) @ s / units
    found = flat(op.matvec(v))
    assert float((found - truth).norm()) <= 1e-5 * float(truth.norm())
    one = op.matvec({n: t[0] for n, t in v.items()})
    assert float((torch.cat([t.reshape(-1) for t in one.values()]) - truth[0]).norm()) <= 1e-5 * (
        float(truth[0].norm())
    )
    delta = {n: t[1] for n, t in v.items()}
    assert op.quadratic(delta) == pytest.approx(float((flat(v)[1] * truth[1]).sum()), rel=1e-5)


# Would catch: a double-backward product that is not the Gauss-Newton matrix, masked tokens in
# it, a Jacobian product of the wrong rows; failure on the default attention kernel.
@pytest.mark.parametrize("name", CASES)
def test_ggn_products_equal_the_exact_expectation(name):
    case = models.case(name)
    op = fs.operator(case.model, rows.examples(case.rows), curvature="ggn")
    v, s = directions(case.model, 2), matrix.expected(name)
    truth = (flat(v) @ s.T) @ s / op.n_units
    assert float((flat(op.matvec(v)) - truth).norm()) <= 1e-4 * float(truth.norm())
    assert all(not p.requires_grad or p.grad is None for p in case.model.parameters())


# Would catch: a Hessian of the mean instead of the sum, or of other labels: central differences
# of plain gradients, in float64.
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama-untied"])
def test_hessian_products_are_differences_of_gradients(name):
    case = models.case(name)
    op = fs.operator(case.model, rows.examples(case.rows), curvature="hessian")
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
    truth = (gradient(step) - gradient(-step)) / (2 * step) / op.n_units
    found = flat(op.matvec(v))[0]
    assert float((found - truth).norm()) <= 1e-3 * float(truth.norm())


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
    [({"curvature": "jacobian"}, "is unknown"), ({"unit": "position"}, "no matrix")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(fs.ParameterError, match=message):
        fs.operator(torch.nn.Linear(2, 2), None, **options)
