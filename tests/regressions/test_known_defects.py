"""Defects found in other curvature libraries in 2026: one named test each that we don't have them.

Each entry says what was seen there (run on their releases of that year), and each test's comment
which bug was planted here to see it fail ("Planted"), or is meant to ("Would catch"). Rules that
disagree with autograd fall back to the exact slow path, so that tests of rules also ask that
nothing went that way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import fisherscope as fs
from oracles import brute, matrix, models, rows
from oracles.checks import slow

TIED = {
    "tiny-gpt2": "transformer.wte.weight",
    "tiny-llama-tied": "model.embed_tokens.weight",
    "tiny-lora": "base_model.model.transformer.wte.weight",
}
STRUCTURES = ("diagonal", "kfac", "ekfac", "block")


@dataclass(frozen=True)
class Defect:
    library: str
    seen: str
    test: str  # here, or file::test under tests/


DEFECTS = (
    Defect("nngeometry", "KFAC of a linear layer on [B, T, d] is T times that of the same layer "
           "written as a convolution of width 1: a division is thrown away",
           "test_a_linear_layer_and_a_convolution_of_width_1_have_one_kfac"),
    Defect("nngeometry", "a tied tensor counts as two parameters and loses its cross terms",
           "test_a_tied_tensor_is_one_parameter_with_cross_terms"),
    Defect("nngeometry", "the softmax of [B, T, V] logits runs over the positions",
           "test_the_softmax_runs_over_the_vocabulary"),
    Defect("backpack", "the second use of a tied weight overwrites what the first one gave",
           "test_a_tied_tensor_is_one_parameter_with_cross_terms"),
    Defect("backpack, nngeometry", "position ids of a batch of one are broadcast: all examples are "
           "summed before anything is squared",
           "test_broadcast_positions_belong_to_their_examples"),
    Defect("all of them", "parameters of unmodified transformers are refused or left out",
           "test_every_parameter_of_unmodified_models_is_covered"),
    Defect("curvlinops", "products fail on the default attention kernel, and on SiLU",
           "test_products_need_no_special_attention"),
    Defect("curvlinops, asdl, backpack", "labels of -100 are counted as tokens",
           "test_masked_labels_count_nowhere"),
    Defect("asdl", "the mean over n draws is divided by n twice; 3-D logits crash",
           "test_more_draws_do_not_shrink_the_fisher"),
    Defect("curvlinops, nngeometry, asdl", "under checkpointing inputs are counted twice, or it "
           "crashes", "test_recomputed_inputs_count_once"),
    Defect("hessian-eigenthings", "a mean of means over batches of unlike size",
           "test_batches_of_unlike_size_weigh_by_their_examples"),
    Defect("hessian-eigenthings", "finite differences in bf16: half of the product is error",
           "test_products_of_bf16_models_are_as_good_as_bf16"),
    # By construction: our memory tests watch torch's own allocations, and never tracemalloc.
    Defect("hessian-eigenthings", "a memory test that watches Python's heap, where tensors are not",
           "engine/test_contraction.py::test_memory_does_not_grow_with_the_batch"),
    Defect("nngeometry, asdl, backpack", "sums in the format of the model",
           "test_sums_of_bf16_models_are_fp32"),
)  # fmt: skip


def estimate(model: nn.Module, data: object, **options) -> fs.Fisher:
    return fs.estimate(model, data, progress=False, **options)


def close(found: Tensor, truth: Tensor, bound: float = 1e-5) -> None:
    assert float((found.double() - truth.double()).norm()) <= bound * float(truth.norm())


class Pointwise(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) if isinstance(self.layer, nn.Linear) else self.layer(x.mT).mT
        return self.head(torch.tanh(y)).sum(1)


# Planted: gradients of a layer divided by the number of its positions.
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("structure", ["kfac", "kfac(sharing=reduce)"])
def test_a_linear_layer_and_a_convolution_of_width_1_have_one_kfac(structure, length):
    torch.manual_seed(0)
    linear, conv = Pointwise(nn.Linear(4, 3)), Pointwise(nn.Conv1d(4, 3, 1))
    conv.head = linear.head
    with torch.no_grad():
        conv.layer.weight.copy_(linear.layer.weight.unsqueeze(2))
        conv.layer.bias.copy_(linear.layer.bias)
    x, y = torch.randn(5, length, 4), torch.tensor([0, 1, 1, 0, 1])
    mine, theirs = (estimate(m, (x, y), structure=structure) for m in (linear, conv))
    for key, total in mine.sums.items():
        close(theirs.sums[key], total)
    h = linear.layer(x).detach().requires_grad_(True)
    logits = linear.head(torch.tanh(h)).sum(1)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), h)
    a = torch.cat([x, torch.ones(5, length, 1)], 2)
    if "reduce" in structure:
        g, a = g.sum(1, keepdim=True), a.mean(1, keepdim=True)
    g, a = g.flatten(0, 1), a.flatten(0, 1)
    truth = torch.kron(g.T @ g, a.T @ a) / len(a) / 5
    v = torch.randn(3, 4)
    product = truth.reshape(3, 5, 3, 5)[:, :4, :, :4]
    found = mine.matvec({"layer.weight": v})["layer.weight"]
    close(found, torch.einsum("oipj,pj->oi", product, v))


# Planted: the cross term of the two uses left out. Would catch too: only the last use kept.
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", TIED)
def test_a_tied_tensor_is_one_parameter_with_cross_terms(name, structure):
    case = models.case(name)
    fisher = estimate(case.model, rows.examples(case.rows), structure=structure)
    assert fisher.n_parameters == sum(p.numel() for p in case.model.parameters())
    truth, _ = brute.reference(name, "example")
    close(fisher.diagonal("sum")[TIED[name]], truth[TIED[name]])
    assert not slow(estimate(case.model, rows.examples(case.rows)))


# Planted: softmax over dimension 1 of the logits.
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-bert-mlm"])
def test_the_softmax_runs_over_the_vocabulary(name):
    case = models.case(name)
    data = rows.examples(case.rows)
    options = {"likelihood": case.likelihood}
    fisher = estimate(case.model, data, fisher_type="type-2", **options)
    truth = brute.type2(brute.twin(name), case.rows, case.likelihood)
    for n, total in truth.items():
        if not case.vanishes(n):
            close(fisher.sums[n], total)


# Planted: the broadcast of position ids before the look-up left out.
@pytest.mark.parametrize("structure", ["diagonal", "block"])
def test_broadcast_positions_belong_to_their_examples(structure):
    case = models.case("tiny-gpt2")
    data = rows.examples(case.rows)
    name = "transformer.wpe.weight"
    fisher = estimate(case.model, data, structure=structure, batch_size=3)
    close(fisher.diagonal("sum")[name], brute.reference("tiny-gpt2", "example")[0][name])
    assert not slow(estimate(case.model, data, batch_size=3))


# Planted: parameters without a rule dropped instead of sent down the slow path.
@pytest.mark.parametrize("structure", [*STRUCTURES, "grouped"])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-lora", "tiny-bert-mlm", "vit"])
def test_every_parameter_of_unmodified_models_is_covered(name, structure):
    case = models.case(name)
    if name == "vit" and structure == "block":
        structure = "block(per=tensor)"
    fisher = estimate(case.model, rows.examples(case.rows), structure=structure)
    assert list(fisher.coverage) == [n for n, _ in case.model.named_parameters()]
    if structure != "kfac":
        truth = sum(float(t.sum()) for t in brute.reference(name, "example")[0].values())
        assert fisher.trace("sum") == pytest.approx(truth, rel=1e-5)


# Planted: the plain attention kernel not asked for where something is differentiated twice.
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "hessian"])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_products_need_no_special_attention(name, curvature):
    case = models.case(name)
    assert case.model.config._attn_implementation == "sdpa"
    op = fs.operator(case.model, rows.examples(case.rows), curvature=curvature)
    v = {n: torch.ones(s) for n, s in op.parameters.items()}
    found = torch.cat([t.reshape(-1) for t in op.matvec(v).values()]).double()
    if curvature == "hessian":  # against differences in tests/products
        assert torch.isfinite(found).all() and float(found.norm()) > 0
        return
    s = matrix.expected(name) if curvature == "ggn" else matrix.empirical(name, "example")
    close(found, s.T @ (s @ torch.ones(s.shape[1], dtype=s.dtype)) / op.n_units, 1e-4)


KINDS = {
    "empirical": {},
    "token": {"unit": "token"},
    "position": {"unit": "position"},
    "mc": {"fisher_type": "mc"},
    "signs": {"fisher_type": "mc", "sampling": "signs"},
    "batch": {"fisher_type": "mc", "unit": "batch", "batch_size": 8},
    "type-2": {"fisher_type": "type-2"},
}


# A causal model does not see what comes later: a masked tail must change nothing at all.
# Planted: masked rows counted in the factors. Would catch too: in the curvature of the outputs.
@pytest.mark.parametrize(
    ("structure", "kind"),
    [
        (s, k)
        for s in (*STRUCTURES, "ggn", "fisher")
        for k in KINDS
        if s == "diagonal" or k not in {"batch", "position"}
        if s != "ggn" or k == "empirical"
    ],
)
def test_masked_labels_count_nowhere(structure, kind):
    case = models.case("tiny-gpt2")
    short = rows.examples([r for r in case.rows if len(r.labels) < 5])
    long = []
    for e in short:
        more = torch.tensor([1, 6, 2, 2])[: 8 - e.length]
        ids = torch.cat([e.inputs["input_ids"], more])
        labels = torch.cat([e.labels, torch.full_like(more, -100)])
        long.append(replace(e, inputs={"input_ids": ids}, labels=labels))
    options = KINDS[kind]
    if structure in {"ggn", "fisher"}:
        ops = [fs.operator(case.model, d, curvature=structure, **options) for d in (short, long)]
        v = {n: torch.ones(s) for n, s in ops[0].parameters.items()}
        one, other = (torch.cat([t.reshape(-1) for t in op.matvec(v).values()]) for op in ops)
        close(other, one)
        return
    one, other = (estimate(case.model, d, structure=structure, **options) for d in (short, long))
    assert (other.n_tokens, other.n_units) == (one.n_tokens, one.n_units)
    for n, d in one.diagonal().items():
        close(other.diagonal()[n], d, 1e-4)


# Planted: the count of draws in the denominator twice.
@pytest.mark.parametrize("structure", ["diagonal", "kfac"])
@pytest.mark.parametrize("sampling", ["labels", "signs"])
def test_more_draws_do_not_shrink_the_fisher(sampling, structure):
    case = models.case("tiny-gpt2")
    data, parameters = rows.examples(case.rows), "transformer.h.0.mlp.*"
    options = {"parameters": parameters, "structure": structure}
    exact = estimate(case.model, data, fisher_type="type-2", **options).trace()
    options |= {"fisher_type": "mc", "sampling": sampling}
    for draws in (1, 4, 16, 64):
        found = estimate(case.model, data, draws=draws, seed=1, **options).trace()
        # KFAC's own error is in both: 64 draws are 640 labels.
        assert 0.3 < found / exact < 3
    assert found == pytest.approx(exact, rel=0.25)


# Planted: inputs taken at every forward pass, also when it is computed again. Their mean is the
# same then, only sums and counts tell.
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_recomputed_inputs_count_once(structure, reentrant):
    case = models.case("tiny-gpt2")
    data = rows.examples(case.rows)
    truth = estimate(case.model, data, structure=structure)
    model = copy.deepcopy(case.model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    again = estimate(model, data, structure=structure)
    assert again.trace() == pytest.approx(truth.trace(), rel=1e-5)
    for n, d in truth.diagonal().items():
        close(again.diagonal()[n], d, 1e-4)
    if structure != "ekfac":  # the signs of eigenvectors are free
        for key, total in truth.sums.items():
            close(again.sums[key], total, 1e-4)


# Planted: products, and squares, divided by the size of their batch.
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "hessian"])
def test_batches_of_unlike_size_weigh_by_their_examples(curvature):
    case = models.case("mlp")
    data = rows.examples(case.rows[:5])
    found = []
    for size in (1, 4, 5):  # 4 + 1
        op = fs.operator(case.model, data, curvature=curvature, batch_size=size)
        v = {n: torch.ones(s) for n, s in op.parameters.items()}
        found.append(torch.cat([t.reshape(-1) for t in op.matvec(v).values()]))
    close(found[0], found[2])
    close(found[1], found[2])
    sums = [estimate(case.model, data, batch_size=size).trace() for size in (1, 4, 5)]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)


# By construction: nothing is a difference of two evaluations. What is left is the rounding of
# bf16 layers, a few percent. Planted: sums of products in the format of the parameters.
@pytest.mark.parametrize("curvature", ["fisher", "ggn"])
def test_products_of_bf16_models_are_as_good_as_bf16(curvature):
    case = models.case("llama-untied")
    half = copy.deepcopy(case.model).bfloat16()
    exact, data = brute.double(half), rows.examples(case.rows)
    ops = [fs.operator(m, data, curvature=curvature) for m in (half, exact)]
    g = torch.Generator().manual_seed(0)
    v = {n: torch.randn(s, generator=g) for n, s in ops[0].parameters.items()}
    products = [op.matvec(v) for op in ops]
    assert {t.dtype for t in products[0].values()} == {torch.float32}
    found, truth = (torch.cat([t.reshape(-1) for t in p.values()]).double() for p in products)
    close(found, truth, 0.08)


# Planted: sums of the type of the parameter.
@pytest.mark.parametrize("structure", [*STRUCTURES, "grouped"])
def test_sums_of_bf16_models_are_fp32(structure):
    case = models.case("tiny-llama-tied")
    half = copy.deepcopy(case.model).bfloat16()
    fisher = estimate(half, rows.examples(case.rows), structure=structure)
    assert {t.dtype for t in fisher.sums.values()} <= {torch.float32, torch.float64}
    double = estimate(brute.double(case.model), rows.examples(case.rows), structure=structure)
    assert all(t.dtype == torch.float64 for t in double.sums.values())


def test_every_defect_has_its_test():
    from pathlib import Path

    root = Path(__file__).parent.parent
    for defect in DEFECTS:
        file, _, test = defect.test.rpartition("::")
        text = (root / file if file else Path(__file__)).read_text(encoding="utf-8")
        assert f"def {test}(" in text, defect
    words = "trace" + "malloc"
    assert not [p for p in root.rglob("test_*.py") if f"import {words}" in p.read_text("utf-8")]
