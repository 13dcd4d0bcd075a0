"""The convolution rule by itself: every option against autograd, one example at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fisherscope.engine.layers import convolution, rule_for
from fisherscope.engine.layers.rule import UnexpectedShapeError

# Torch says that an even kernel with padding="same" costs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

B = 3
# Sizes, kernels, strides and dilations differ along every dimension.
PLAIN = {
    "1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), (9,)),
    "1d-circular": (lambda: nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular"), (7,)),
    "2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 3)), (8, 7)),
    "2d-reflect": (lambda: nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="reflect"), (6, 5)),
    "2d-same": (lambda: nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 2)), (6, 5)),
    "2d-valid": (lambda: nn.Conv2d(2, 4, (4, 3), padding="valid", bias=False), (6, 5)),
    "2d-replicate-same": (
        lambda: nn.Conv2d(2, 4, (2, 3), padding="same", padding_mode="replicate"),
        (4, 5),
    ),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 2), padding=(0, 1, 0)), (4, 5, 6)),
}
OTHER = {
    "2d-groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4)),
    "up-1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1), (5,)),
    "up-2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=2), (4, 3)),
    "up-3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 1)), (3, 2, 4)),
}


def used(conv: nn.Module, size: tuple[int, ...], images: int = 1):
    """A rule, what it saves, the output gradient, and every example's own gradients."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn((B * images, conv.in_channels, *size), generator=g)
    y = conv(x)
    cotangent = torch.randn(y.shape, generator=g)
    parameters = dict(conv.named_parameters())
    alone = []
    for n in range(B):
        own = slice(n * images, (n + 1) * images)
        found = torch.autograd.grad(conv(x[own]), list(parameters.values()), cotangent[own])
        alone.append(dict(zip(parameters, found, strict=True)))
    rule = rule_for(conv)
    assert rule is not None
    saved = rule.save((x,), y.detach())
    expected = {name: torch.stack([one[name] for one in alone]) for name in parameters}
    return rule, saved, cotangent, expected


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


# Would catch: an option of the layer that its gradient forgets (dilation, padding by another
# mode or by name, output padding, groups), or an example that gets another one's images; in
# the products with patches also channels and kernel swapped.
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_gradients_of_every_example(name, images, large, monkeypatch):
    if large:
        monkeypatch.setattr(convolution, "_FEWEST_EXAMPLES", 100)
    make, size = {**PLAIN, **OTHER}[name]
    rule, saved, cotangent, expected = used(make(), size, images)
    scores = dict(rule.scores(saved, cotangent, B))
    assert list(scores) == [n for n in ("bias", "weight") if n in expected]
    for local, score in scores.items():
        close(score.dense(slice(0, B), expected[local].shape[1:]), expected[local])
        close(score.dense(slice(1, 3), expected[local].shape[1:]), expected[local][1:3])
        total = torch.zeros(expected[local].shape[1:])
        close(score.squares(total), expected[local].flatten(1).square().sum(1))
        close(total, expected[local].square().sum(0))


# Would catch: patches in another order than the weight's, kernel dimensions swapped, a
# stride taken for a dilation, padding with zeros instead of by the layer's mode, positions
# of patches and of output gradients that do not correspond.
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_factors_multiply_to_the_gradient(name, images, large, monkeypatch):
    if large:
        monkeypatch.setattr(convolution, "_FEWEST_EXAMPLES", 100)
    make, size = PLAIN[name]
    rule, saved, cotangent, expected = used(make(), size, images)
    score = dict(rule.scores(saved, cotangent, B))["weight"]
    g, a = score.factors()
    product = torch.einsum("nto,nti->noi", g, a)
    close(product, expected["weight"].flatten(2))
    close(torch.einsum("nto->no", g), cotangent.reshape(B, images, g.shape[2], -1).sum((1, 3)))
    # The same rows in the forward pass, when there is no gradient yet.
    assert torch.equal(rule.inputs(saved, B), a)
    single = torch.einsum("nto,nti->ntoi", g, a).square()
    total = torch.zeros(expected["weight"].shape[1:])
    norms = score.position_squares(total)
    close(total.flatten(1), single.sum((0, 1)))
    close(norms, single.sum((1, 2, 3)))


# Would catch: factors promised where no single matrix maps patches to outputs.
@pytest.mark.parametrize("name", OTHER)
def test_no_factors_where_there_is_no_matrix(name):
    make, size = OTHER[name]
    rule, saved, cotangent, _ = used(make(), size)
    assert dict(rule.scores(saved, cotangent, B))["weight"].factors() is None
    assert rule.inputs(saved, B) is None


# Would catch: an image without a batch whose channels are taken for examples.
def test_an_input_without_a_batch_is_refused():
    conv = nn.Conv1d(3, 4, 2)
    rule = rule_for(conv)
    x = torch.randn(3, 6)
    for call in (lambda: rule.inputs((x,), B), lambda: list(rule.scores((x,), conv(x), B))):
        with pytest.raises(UnexpectedShapeError, match="without a batch"):
            call()


# Would catch: rows of a linear layer that differ from the ones its score is made of.
@pytest.mark.parametrize("shape", [(B, 5), (B, 4, 5), (B * 4, 5)])
def test_inputs_of_a_linear_layer(shape):
    layer = nn.Linear(5, 2)
    rule = rule_for(layer)
    x = torch.randn(shape)
    y = layer(x)
    saved = rule.save((x,), y)
    score = dict(rule.scores(saved, torch.ones_like(y), B))["weight"]
    assert torch.equal(rule.inputs(saved, B), score.factors()[1])
    assert rule_for(nn.LayerNorm(5)).inputs((x,), B) is None
