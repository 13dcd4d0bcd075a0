"""Weighted sums of squared scores, example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisherscope as fs
from fisherscope.analysis.weighted import weighted_squares
from fisherscope.preparation import prepare
from oracles import brute, models, rows


def some_weights(model, n=2):
    torch.manual_seed(0)
    return [{name: torch.rand(p.shape) for name, p in model.named_parameters()} for _ in range(n)]


# Catches: a tied matrix whose two uses are squared before they are summed, tokens that are summed
# before they are squared, draws that are not averaged, rows of a batch that are mixed up.
@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama-tied"])
@pytest.mark.parametrize(
    "options",
    [{}, {"unit": "token"}, {"fisher_type": "mc", "draws": 2, "seed": 3}, {"batch_size": 2}],
)
def test_against_brute_force(name, options):
    case, twin, config = models.case(name), brute.twin(name), fs.FisherConfig(**options)
    weights = some_weights(case.model)
    found = weighted_squares(prepare(case.model, rows.examples(case.rows), config), weights)
    expected = np.zeros_like(found)
    draws = config.draws if config.fisher_type == "mc" else 0
    for n, row in enumerate(case.rows):
        for draw in range(max(1, draws)):
            labels = None
            if draws:
                labels = brute.draw_labels(twin, row, case.likelihood, config.seed, draw)
            for score in brute.scores(twin, row, case.likelihood, config.unit, labels):
                for k, each in enumerate(weights):
                    expected[n, k] += sum(
                        float((g.square() * each[name].double()).sum()) for name, g in score.items()
                    )
    np.testing.assert_allclose(found, expected / max(1, draws), rtol=2e-4)


class Mixing(nn.Module):
    """Sees in every example the mean of its batch, so that batches have to be of one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x + x.mean(0))))


def test_a_model_that_batches_change():
    # Catches: rows of examples that are not there yet when their turn comes one by one.
    torch.manual_seed(0)
    model = Mixing()
    x, y = torch.randn(5, 4), torch.tensor([0, 2, 1, 0, 2])
    prepared = prepare(model, (x, y), fs.FisherConfig())
    assert prepared.coverage.single
    weights = some_weights(model, 1)
    found = weighted_squares(prepared, weights)
    for n in range(5):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        expected = sum(
            float((g.square() * w).sum())
            for g, w in zip(gradients, weights[0].values(), strict=True)
        )
        assert found[n, 0] == pytest.approx(expected, rel=1e-4)
