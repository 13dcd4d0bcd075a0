"""The probe by itself: what follows a layer may not notice it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fisherscope.engine.probe import watch


# Would catch: an activation in place whose derivative is lost, or a gradient that reaches the
# callback in the memory of the layer's two-dimensional product instead of its output's shape.
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: Conv1D(3, 4)])
def test_a_layer_followed_by_an_activation_in_place(make):
    layer, seen = make().requires_grad_(False), []
    x = torch.randn(2, 5, 4, requires_grad=True)
    torch.relu(layer(x)).square().sum().backward()
    expected, x.grad = x.grad, None
    out = watch(layer(x), torch.zeros((), requires_grad=True), lambda s, g: seen.append(g))
    # The copies of a view's gradient cost more than most layers' scores.
    assert out.grad_fn.name() == "ProbeBackward"
    out.relu_().square().sum().backward()
    assert torch.allclose(x.grad, expected)
    assert torch.allclose(seen[0], 2 * torch.relu(layer(x)))


# Would catch: a view whose base somebody uses taken for a result that nobody holds; autograd
# would not notice that it is overwritten.
def test_a_view_of_a_kept_tensor_is_still_guarded():
    x = torch.randn(2, 5, 4, requires_grad=True)
    out = watch(torch.tanh(x).view(2, 20), torch.zeros((), requires_grad=True), lambda s, g: None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.relu_().sum().backward()
