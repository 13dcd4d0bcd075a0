"""Drawn labels lead to the true Fisher, with the noise that is stated, and to the KL divergence."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.analysis.damage import damage
from oracles import brute, models, nets, rows

# Few classes, so that all of them can be enumerated.
CLASSES = 7


@cache
def small(name: str) -> tuple[nn.Module, nn.Module, list[rows.Row], str]:
    torch.manual_seed(5)
    text = rows.text((4, 5, 3), vocabulary=CLASSES, seed=2)
    cloze = rows.cloze((4, 3), vocabulary=CLASSES)
    made = {
        "gpt2": lambda: (models.gpt2(vocab_size=CLASSES), text, "causal-lm"),
        "llama-tied": lambda: (
            models.llama(vocab_size=CLASSES, tie_word_embeddings=True),
            text,
            "causal-lm",
        ),
        "bert-mlm": lambda: (models.bert(True, vocab_size=CLASSES), cloze, "masked-lm"),
        "resnet": lambda: (nets.ResNet(), rows.points(3, (3, 8, 8), classes=3), "classification"),
        "layerscale": lambda: (
            nets.LayerScale(),
            rows.points(4, (5,), classes=3),
            "classification",
        ),
        "mlp": lambda: (nets.MLP(4), rows.points(4, (5,), classes=4), "classification"),
        "regression": lambda: (nets.MLP(2), rows.points(4, (5,), targets=2), "regression"),
    }
    model, data, likelihood = made[name]()
    models.randomise(model)
    return model, brute.double(model), data, likelihood


SMALL = ("gpt2", "llama-tied", "bert-mlm", "resnet", "layerscale", "mlp", "regression")


@cache
def exact(name: str) -> dict[str, torch.Tensor]:
    _, twin, data, likelihood = small(name)
    return brute.type2(twin, data, likelihood)


def draw(name: str, draws: int, seed: int) -> fs.Fisher:
    model, _, data, _ = small(name)
    options = {"fisher_type": "mc", "draws": draws, "seed": seed, "progress": False}
    return fs.estimate(model, rows.examples(data), **options)


def traces(name: str) -> np.ndarray:
    """Of the tensors whose score does not vanish in theory."""
    return np.array([float(t.sum()) for n, t in exact(name).items() if "key.bias" not in n])


def columns(fisher: fs.Fisher) -> list[str]:
    return [n for n in fisher.ledger.tensors if "key.bias" not in n]


# Would catch: a bias of the draws (labels of a neighbouring position, probabilities of another
# temperature, the same label for all tokens, a sum over draws that is not divided), and a
# standard error that is too small. The data's own labels are not drawn from the model: their
# Fisher has to be found outside of the interval, or the test has no power.
@pytest.mark.parametrize("name", SMALL)
def test_converges_to_the_exact_expectation_within_its_own_standard_error(name):
    fisher = draw(name, draws=256, seed=1)
    names = columns(fisher)
    error = np.array([fisher.standard_error(per="sum", source="draws")[n] for n in names])
    found = np.array([fisher.traces(per="sum")[n] for n in names])
    truth = traces(name)
    assert (abs(found - truth) <= 3 * error).mean() >= 0.95
    assert np.median(error / truth) < 0.15
    total = fisher.standard_error(per="sum", source="draws")[""]
    assert abs(found.sum() - truth.sum()) <= 3 * total

    model, _, data, _ = small(name)
    empirical = fs.estimate(model, rows.examples(data), progress=False)
    wrong = np.array([empirical.traces(per="sum")[n] for n in names])
    assert (abs(wrong - truth) > 3 * error).mean() > 0.5

    # Not only the traces: every entry of every tensor.
    difference = sum(
        float((fisher.diagonal("sum")[n] - exact(name)[n]).square().sum()) for n in names
    )
    size = sum(float(exact(name)[n].square().sum()) for n in names)
    assert (difference / size) ** 0.5 < 0.15


# Would catch: draws that are the same for every seed, or not independent between seeds; a
# standard error from the ledger that does not describe how replicates really scatter.
@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "layerscale", "regression"])
def test_replicates_scatter_around_the_exact_expectation(name):
    replicates = [draw(name, draws=16, seed=seed) for seed in range(12)]
    names = columns(replicates[0])
    found = np.array([[f.traces(per="sum")[n] for n in names] for f in replicates])
    stated = np.array([
        [f.standard_error(per="sum", source="draws")[n] for n in names] for f in replicates
    ])
    observed = found.std(0, ddof=1)
    error = observed / np.sqrt(len(replicates))
    assert (abs(found.mean(0) - traces(name)) <= 3 * error).mean() >= 0.95
    ratio = np.sqrt((observed**2).mean() / (stated**2).mean())
    assert 0.6 < ratio < 1.6


# Would catch: draws that repeat each other (the error would stop falling), and draws that are
# not independent (it would fall at another rate).
# The draws' keys are those of all models: the cheap one shows the long way.
@pytest.mark.parametrize(("name", "most"), [("mlp", 256), ("gpt2-tiny", 64)])
def test_error_falls_as_one_over_root_draws(name, most):
    if name == "mlp":
        model, data = nets.MLP(4), rows.points(3, (5,), classes=4)
        likelihood = "classification"
    else:
        torch.manual_seed(0)
        model = models.gpt2(vocab_size=5, n_embd=4, n_layer=1, n_head=1)
        data, likelihood = rows.text((3, 4), vocabulary=5), "causal-lm"
    models.randomise(model)
    truth = brute.type2(brute.double(model), data, likelihood)
    counts = np.array([n for n in (1, 4, 16, 64, 256) if n <= most])
    errors = []
    for draws in counts:
        squared = []
        for seed in range(6):
            options = {"fisher_type": "mc", "draws": int(draws), "seed": 100 + seed}
            fisher = fs.estimate(model, rows.examples(data), progress=False, **options)
            diagonal = fisher.diagonal("sum")
            squared.append(sum(float((diagonal[n] - truth[n]).square().sum()) for n in truth))
        errors.append(np.sqrt(np.mean(squared)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -0.65 <= slope <= -0.35


def log_probabilities(model: nn.Module, row: rows.Row, likelihood: str) -> torch.Tensor:
    """[tokens, classes] of the supervised tokens."""
    out = brute.outputs(model, row)
    at, _ = brute.supervised(row, likelihood)
    return (out[at] if likelihood.endswith("lm") else out[None]).log_softmax(-1)


def moved(twin: nn.Module, delta: dict[str, torch.Tensor], scale: float) -> nn.Module:
    other = brute.double(twin)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.add_(scale * delta[name])
    return other


# Would catch: a Fisher that is not one: another normalisation (a factor 2, tokens against
# examples, draws), another distribution, prompts included. This is the property that all
# uses of it rest on: KL(p(θ) ‖ p(θ+δ)) ≈ ½ δᵀFδ, nats per token.
@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "mlp", "layerscale"])
def test_kl_divergence_is_half_the_quadratic_form(name):
    model, twin, data, likelihood = small(name)
    g = torch.Generator().manual_seed(3)
    delta = {
        n: torch.randn(p.shape, generator=g, dtype=torch.float64)
        for n, p in twin.named_parameters()
    }
    tokens = sum(len(brute.supervised(row, likelihood)[0]) for row in data)
    scale = 1e-4
    other = moved(twin, delta, scale)
    kl = quadratic = 0.0
    with torch.no_grad():
        for row in data:
            p, q = (log_probabilities(m, row, likelihood) for m in (twin, other))
            kl += float((p.exp() * (p - q)).sum()) / tokens
    # Enumerated: ⟨∂ log p(label), δ⟩² for each label of each token, by central differences.
    ahead, behind = moved(twin, delta, 1e-5), moved(twin, delta, -1e-5)
    with torch.no_grad():
        for row in data:
            p, up, down = (log_probabilities(m, row, likelihood) for m in (twin, ahead, behind))
            along = scale * (up - down) / 2e-5
            quadratic += float((p.exp() * along.square()).sum()) / tokens
    assert kl == pytest.approx(0.5 * quadratic, rel=2e-3)

    step = {n: (scale * d).float() for n, d in delta.items()}
    seconds = [
        damage(model, rows.examples(data), step, draws=64, seed=seed, measure=False).table.second[0]
        for seed in range(8)
    ]
    mean, error = np.mean(seconds), np.std(seconds, ddof=1) / np.sqrt(len(seconds))
    assert error < 0.1 * mean
    assert abs(mean - 0.5 * quadratic) <= 3 * error
