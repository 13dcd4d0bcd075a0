"""Models whose Fisher can be written down: no autograd on either side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtri, softmax
from torch import nn

import fisherscope as fs
from fisherscope.data import Example, keyed_uniforms

N, D, K = 7, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
IDS = [str(n) for n in range(N)]


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(D, K)


def outputs(layer: nn.Linear) -> np.ndarray:
    w, b = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return X.astype(np.float64) @ w.T + b


def batch(labels: np.ndarray | None = None) -> dict[str, object]:
    """The inputs under the names by which the references find rows and draw labels."""
    given = {} if labels is None else {"labels": torch.from_numpy(labels)}
    return {"0": torch.from_numpy(X), "id": IDS, **given}


def expect(fisher: fs.Fisher, residuals: np.ndarray, rtol: float = 1e-5) -> None:
    """The score of an output is its residual: squares of residual times input."""
    r2, x2 = residuals**2, X.astype(np.float64) ** 2
    diagonal = fisher.diagonal("sum")
    np.testing.assert_allclose(diagonal["weight"], np.einsum("nk,nd->kd", r2, x2), rtol=rtol)
    np.testing.assert_allclose(diagonal["bias"], r2.sum(0), rtol=rtol)
    for row, ident in enumerate(fisher.ledger.ids):
        n = IDS.index(ident)
        expected = [r2[n].sum() * x2[n].sum(), r2[n].sum()]
        np.testing.assert_allclose(fisher.ledger.squares[row], expected, rtol=rtol)


# Would catch: the factor of a mean squared error (2/K), a variance other than one.
def test_linear_regression():
    layer, y = linear(), RNG.normal(size=(N, K)).astype(np.float32)
    expect(fs.estimate(layer, batch(y), progress=False), outputs(layer) - y)


# Would catch: noise of the wrong scale, or the same noise for all outputs.
def test_linear_regression_with_drawn_targets():
    layer = linear()
    data = batch(np.zeros((N, K), dtype=np.float32))
    options = {"fisher_type": "mc", "seed": 3, "progress": False}
    noise = ndtri(keyed_uniforms(3, IDS, np.tile(np.arange(K), (N, 1)), 0))
    expect(fs.estimate(layer, data, **options), noise)
    # Its expectation, the Hessian of half the squared error, does not know the targets.
    fisher = fs.estimate(layer, data, draws=400, **options)
    x2 = (X.astype(np.float64) ** 2).sum(0)
    np.testing.assert_allclose(fisher.diagonal("sum")["weight"], np.tile(x2, (K, 1)), rtol=0.35)
    np.testing.assert_allclose(fisher.diagonal("sum")["weight"].mean(0), x2, rtol=0.12)


# Would catch: gradients of a mean over the batch, p − y with the sign or the class mixed up.
@pytest.mark.parametrize("classes", [2, K])
def test_logistic_and_softmax_regression(classes):
    torch.manual_seed(1)
    layer = nn.Linear(D, classes)
    y = RNG.integers(classes, size=N)
    p = softmax(outputs(layer), axis=1)
    data = batch(y)
    expect(fs.estimate(layer, data, progress=False), p - np.eye(classes)[y])
    if classes == 2:  # the usual form: one logit, (σ − y) x
        sigma = 1 / (1 + np.exp(outputs(layer)[:, 0] - outputs(layer)[:, 1]))
        fisher = fs.estimate(layer, data, progress=False)
        expected = ((sigma - y) ** 2) @ X.astype(np.float64) ** 2
        np.testing.assert_allclose(fisher.diagonal("sum")["weight"][1], expected, rtol=1e-5)


# Would catch: an inverse of the cumulative distribution that is off by one.
def test_softmax_regression_with_drawn_labels():
    layer = linear(2)
    p = softmax(outputs(layer), axis=1)
    u = keyed_uniforms(5, IDS, np.zeros((N, 1), dtype=int), 0)
    drawn = (p.cumsum(1) <= u).sum(1)
    options = {"likelihood": "classification", "fisher_type": "mc", "progress": False}
    fisher = fs.estimate(layer, batch(), seed=5, **options)
    expect(fisher, p - np.eye(K)[drawn])
    # Its expectation: variance of a categorical variable times squared inputs.
    fisher = fs.estimate(layer, batch(), draws=600, **options)
    expected = np.einsum("nk,nd->kd", p * (1 - p), X.astype(np.float64) ** 2)
    error = fisher.standard_error("sum", "draws")["weight"]
    assert abs(float(fisher.diagonal("sum")["weight"].sum()) - expected.sum()) <= 3 * error
    np.testing.assert_allclose(fisher.diagonal("sum")["weight"], expected, rtol=0.3)


class Bigram(nn.Module):
    """Language model whose logits are the row of the last token."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


# Would catch: a shift of the labels by none or by two, a token that occurs twice in an example
# squared once per occurrence (or once per batch), the first label scored, masked ones scored.
def test_bigram_language_model():
    torch.manual_seed(0)
    model = Bigram(5)
    p = softmax(model.table.weight.detach().double().numpy(), axis=1)
    sequences = [[0, 1, 1, 1, 2], [3, 3, 0], [4, 1, 4, 1, 4, 1]]
    masked = {(0, 2), (2, 1), (2, 0)}
    data, example, token = [], np.zeros((5, 5)), np.zeros((5, 5))
    for n, ids in enumerate(sequences):
        labels = [-100 if (n, t) in masked else i for t, i in enumerate(ids)]
        data.append(Example(str(n), {"input_ids": torch.tensor(ids)}, torch.tensor(labels)))
        score = np.zeros((5, 5))
        for t in range(1, len(ids)):
            if labels[t] != -100:
                residual = p[ids[t - 1]] - np.eye(5)[labels[t]]
                score[ids[t - 1]] += residual
                token[ids[t - 1]] += residual**2
        example += score**2
    options = {"likelihood": "causal-lm", "progress": False}
    for unit, expected in (("example", example), ("token", token), ("position", token)):
        fisher = fs.estimate(model, data, unit=unit, **options)
        np.testing.assert_allclose(fisher.sums["table.weight"], expected, rtol=1e-5, atol=1e-7)
        assert fisher.n_tokens == 4 + 2 + 5 - 2
        grouped = fs.estimate(model, data, unit=unit, structure="grouped", **options)
        np.testing.assert_allclose(
            grouped.sums["table.weight"][:, 0], expected.sum(1), rtol=1e-5, atol=1e-7
        )
