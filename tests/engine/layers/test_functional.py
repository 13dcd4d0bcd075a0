"""Modules of no known class that call ``F.linear`` with a weight of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from oracles import brute, models, rows
from oracles.checks import compare, slow


class Router(nn.Module):
    """Returns a tuple, as routers do; ``apply`` is the way in which it uses its weight."""

    def __init__(self, apply, bias: bool = False):
        super().__init__()
        self.apply_to = apply
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.bias = nn.Parameter(torch.randn(6)) if bias else None

    def forward(self, x):
        logits = self.apply_to(self, x)
        return logits, logits.softmax(-1)


class Model(nn.Module):
    def __init__(self, router: nn.Module):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.router = router
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.router(torch.tanh(self.first(x)))[1])


WAYS = {
    "plain": (lambda m, x: F.linear(x, m.weight), False),
    "shifted": (lambda m, x: F.linear(x, m.weight, m.bias), True),
    "keywords": (lambda m, x: F.linear(x, bias=m.bias, weight=m.weight), True),
    "cast": (lambda m, x: F.linear(x.float(), m.weight.float()).to(x.dtype), False),
    "type": (lambda m, x: F.linear(x.float(), m.weight.type(torch.float32)).to(x.dtype), False),
    "twice": (lambda m, x: F.linear(torch.tanh(F.linear(x, m.weight)[..., :5]), m.weight), False),
}
SLOW = {
    "product": (lambda m, x: x @ m.weight.T, False),
    "both": (lambda m, x: F.linear(x, m.weight) + x @ m.weight.T, False),
    "transposed": (lambda m, x: F.linear(F.linear(x, m.weight), m.weight.T) @ m.weight.T, False),
}


# Would catch: a bias that the call does not add scored all the same, arguments by keyword in
# another order, a weight that is cast first taken for a stranger, the second of two calls lost;
# a weight that is also used in another way trusted to the calls that are seen.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", [*WAYS, *SLOW])
def test_each_way_to_apply_a_weight(way, dtype):
    apply, bias = {**WAYS, **SLOW}[way]
    torch.manual_seed(0)
    model = models.randomise(Model(Router(apply, bias)).to(dtype))
    data = [
        rows.Row(r.id, {"0": r.inputs["0"].to(dtype)}, r.labels)
        for r in rows.points(6, (5,), classes=3)
    ]
    fisher = fs.estimate(model, rows.examples(data), batch_size=4, progress=False)
    expected, _ = brute.diagonal(brute.double(model), data, "classification")
    compare(fisher.sums, expected)
    assert slow(fisher) == ({"router.weight"} if way in SLOW else set())


# Would catch: a mode that goes on watching after the module, or the pass, has ended.
def test_nothing_is_watched_afterwards():
    torch.manual_seed(0)
    model = models.randomise(Model(Router(*WAYS["plain"])))
    data = rows.examples(rows.points(6, (5,), classes=3))
    fs.estimate(model, data, progress=False)
    assert not torch.overrides._get_current_function_mode_stack()
    model.head.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fs.estimate(model, data, progress=False)
    assert not torch.overrides._get_current_function_mode_stack()
