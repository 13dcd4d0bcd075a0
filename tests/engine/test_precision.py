"""Number formats: float64 exactly, bf16 as well as bf16 forward and backward passes allow."""

from __future__ import annotations

import copy

import pytest
import torch

import fisherscope as fs
from oracles import brute, models, rows
from oracles.checks import vanishes

# bf16 has 8 bits: every activation and every gradient is rounded by up to 2^-9 = 0.2 %, and
# these errors pile up over the layers, whoever runs the model. The squares are compared with
# float64 on the same rounded weights. Measured over these models: the worst tensor between
# 1.3 % (GPT-2) and 4.1 % (Llama, whose queries and keys pass the most operations), the median
# tensor below 2.4 %. Anything systematically wrong (a missing use, a squared sum) is off by
# tens of percent or more.
BF16 = 0.08


# Would catch: constants, softmax or sums in fp32 in the middle of a float64 computation.
@pytest.mark.parametrize("unit", ["example", "token", "position"])
@pytest.mark.parametrize("name", ["gpt2", "opt", "resnet", "mlp-regression", "layerscale"])
def test_float64_to_rounding(name, unit):
    case = models.case(name)
    model = copy.deepcopy(case.model).double()
    data = [
        rows.Row(
            r.id,
            {n: x.double() if x.is_floating_point() else x for n, x in r.inputs.items()},
            r.labels.double() if r.labels.is_floating_point() else r.labels,
        )
        for r in case.rows
    ]
    fisher = fs.estimate(model, rows.examples(data), unit=unit, progress=False)
    assert fisher.identity.dtype == "float64"
    expected = brute.reference(name, unit)[0]
    for tensor, truth in expected.items():
        assert fisher.sums[tensor].dtype == torch.float64
        if not vanishes(case, unit)(tensor):
            assert float((fisher.sums[tensor] - truth).norm() / truth.norm()) < 1e-10, tensor


def rounded(name: str) -> tuple[torch.nn.Module, torch.nn.Module, models.Case]:
    """A model with bf16 weights, its float64 twin with the same rounded weights."""
    case = models.case(name)
    model = copy.deepcopy(case.model).to(torch.bfloat16)
    return model, brute.double(model), case


# Would catch: sums or squares accumulated in bf16 (which stop growing after some hundred
# examples), softmax in bf16, a use of a tied weight lost in the lower precision.
@pytest.mark.parametrize("unit", ["example", "token"])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "llama-untied", "opt", "bert", "lora"])
def test_bf16_weights(name, unit):
    model, twin, case = rounded(name)
    fisher = fs.estimate(model, rows.examples(case.rows), unit=unit, progress=False)
    assert all(total.dtype == torch.float32 for total in fisher.sums.values())
    assert fisher.identity.dtype == "bfloat16"
    expected, _ = brute.diagonal(twin, case.rows, case.likelihood, unit)
    found = {n: s for n, s in fisher.sums.items() if not case.vanishes(n)}
    expected = {n: e for n, e in expected.items() if n in found}
    errors = brute.errors(found, expected)
    assert max(errors.values()) <= BF16


# Would catch: accumulation in the model's own format: the sums of 400 equal examples in bf16
# would be stuck at about 256 times one of them.
def test_bf16_sums_of_many_examples():
    model, _, case = rounded("mlp")
    row = case.rows[0]
    one = fs.estimate(model, rows.examples([_bf16(row, "a")]), progress=False)
    many = [_bf16(row, str(number)) for number in range(400)]
    fisher = fs.estimate(model, rows.examples(many), progress=False)
    for name, total in fisher.sums.items():
        assert torch.allclose(total, 400 * one.sums[name], rtol=0.02), name


def _bf16(row: rows.Row, name: str) -> rows.Row:
    return rows.Row(name, {"0": row.inputs["0"].bfloat16()}, row.labels)


# Would catch: log-probabilities that underflow or a softmax without the maximum taken out.
def test_extreme_logits():
    case = models.fresh("mlp")
    with torch.no_grad():
        case.model.head.weight.mul_(300)
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    expected, _ = brute.diagonal(brute.double(case.model), case.rows, case.likelihood)
    errors = brute.errors(fisher.sums, expected)
    assert max(errors.values()) < 1e-4  # the logits themselves are only good to 1e-7 of 1000
