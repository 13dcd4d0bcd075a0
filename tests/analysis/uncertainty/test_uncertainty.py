"""The whole of ``fs.uncertainty``: kinds, candidates, priors, quality, and the model untouched."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

import fisherscope as fs
from analysis.uncertainty.linear import classes, fit, regression
from fisherscope.analysis.uncertainty.posterior import Posterior
from oracles import models, rows


def noisy(n: int, seed: int, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, hard to tell apart."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((3, d))
    y = rng.integers(0, 3, n)
    return centres[y] * 0.6 + rng.standard_normal((n, d)), y


def overfitted() -> nn.Module:
    """A softmax regression on fewer examples than it should have."""
    torch.manual_seed(0)
    return fit(nn.Linear(12, 3).double(), *noisy(40, 1), decay=0.02)


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, fs.Fisher]:
    model = overfitted()
    data = classes(*noisy(40, 1))
    options = {"structure": "dense", "fisher_type": "type-2", "progress": False}
    return model, fs.estimate(model, data, **options)


# In a model that is linear in its weights, sampled weights and sampled logits are one thing.
# Would catch: a covariance that the samples don't share, a mean of logits, a step that leaves
# the weights of the sample before in place.
def test_monte_carlo_meets_the_linearised_model(case):
    model, fisher = case
    data = classes(noisy(6, 2)[0])
    # A firm prior: probabilities that are not all at 0 or 1 have a spread that samples can find.
    options = {"prior_precision": 20.0}
    mc = fs.uncertainty(model, fisher, data, kind="monte_carlo", samples=400, **options)
    linear = fs.uncertainty(model, fisher, data, link="samples", samples=8000, **options)
    assert mc.probabilities is not None and linear.probabilities is not None
    spread = linear.predictions["confidence_sd"]
    off = abs(mc.predictions["confidence"] - linear.predictions["confidence"])
    assert (off < 4.5 * spread / 400**0.5).all()
    # Near 0 and 1 a probability is log-normal, and 400 samples don't reach its tail.
    wide = spread > 0.05
    assert wide.any()
    np.testing.assert_allclose(mc.predictions["confidence_sd"][wide], spread[wide], rtol=0.2)
    assert (mc.predictions["information"] > 0).all()


def test_monte_carlo_regression():
    known = regression()
    model = known.model()
    data = [fs.Example(f"r{i}", {"0": torch.from_numpy(x)}, torch.tensor([y]))
            for i, (x, y) in enumerate(zip(known.x, known.y, strict=True))]  # fmt: skip
    fisher = fs.estimate(model, data, structure="dense", fisher_type="type-2", progress=False)
    options = {"prior_precision": known.delta, "noise_variance": known.noise}
    exact = fs.uncertainty(model, fisher, data, **options)
    mc = fs.uncertainty(model, fisher, data, kind="monte_carlo", samples=400, **options)
    np.testing.assert_allclose(mc.predictions["sd"], exact.predictions["sd"], rtol=0.16)
    off = abs(mc.predictions["mean"] - exact.predictions["mean"])
    assert (off < 4.5 * exact.predictions["sd"] / 400**0.5).all()
    assert list(exact.quality["measure"].unique()) == ["nll", "squared_error", "coverage_95"]


# Would catch: a wrecked model that reports certainty: its samples are each certain of another
# class, and only the mean of their probabilities says so.
def test_weights_that_are_nearly_free_are_not_certain():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    fisher = fs.estimate(case.model, data, fisher_type="mc", progress=False)
    found = fs.uncertainty(
        case.model, fisher, data, kind="monte_carlo", prior_precision=1e-8, samples=60
    )
    assert (found.predictions["entropy"] > 0.7 * np.log(4)).all()
    assert (found.predictions["confidence"] < 0.6).all()
    assert np.isfinite(found.predictions["confidence_sd"]).all()


# Would catch: a calibration that makes things worse and says nothing; a baseline fitted on the
# batch that it is measured on.
def test_calibration_error_falls_after_calibration(case):
    model, fisher = case
    test, validation = classes(*noisy(500, 7)), classes(*noisy(300, 8))
    found = fs.uncertainty(model, fisher, test, calibration_batch=validation)
    lines = found.quality.set_index(["predictor", "measure"])
    for predictor in ("laplace", "temperature_scaling"):
        for measure in ("nll", "ece", "ece_equal_mass"):
            assert lines.loc[predictor, measure]["change_high"] < 0, (predictor, measure)
    assert found.outcome == "measured" and found.softmax_temperature > 1
    grid = fs.uncertainty(model, fisher, test, prior_precision="grid", calibration_batch=validation)
    assert grid.prior_outcome == "grid"
    best = grid.quality.set_index(["predictor", "measure"]).loc["laplace", "nll"]["value"]
    assert best < lines.loc["map", "nll"]["value"]
    assert json.dumps(found.to_dict()) and not found.to_frame().empty


# Would catch: a grid search that scores another posterior than it returns.
def test_the_grid_is_as_good_as_its_neighbours(case):
    model, fisher = case
    validation = classes(*noisy(120, 8))
    found = fs.uncertainty(
        model, fisher, validation, prior_precision="grid", calibration_batch=validation
    )

    def nll(delta: float) -> float:
        one = fs.uncertainty(model, fisher, validation, prior_precision=delta)
        return one.quality.set_index(["predictor", "measure"]).loc["laplace", "nll"]["value"]

    best = nll(found.prior_precision)
    step = 10 ** (1 / 3)
    assert best < min(nll(found.prior_precision * step), nll(found.prior_precision / step))


# Would catch: standard errors that depend on the labels of the batch, probabilities other than
# the model's own, a bound that is lower than the inverse of the information.
def test_cramer_rao(case):
    model, fisher = case
    data = classes(noisy(5, 2)[0])
    found = fs.uncertainty(model, fisher, data, kind="cramer_rao", prior_precision=1.0)
    with torch.no_grad():
        own = model(torch.stack([e.inputs["0"] for e in data])).softmax(-1).numpy()
    np.testing.assert_allclose(found.probabilities, own, rtol=1e-6)
    p = 40 * fisher.dense() + torch.eye(39, dtype=torch.float64)
    expected = torch.linalg.inv(p).diagonal().sqrt()
    mine = torch.cat([e.reshape(-1) for e in found.standard_errors.values()])
    torch.testing.assert_close(mine.double(), expected, rtol=1e-6, atol=0)
    assert found.parameters()["largest"].max() == pytest.approx(float(expected.max()), rel=1e-6)


# Would catch: candidates that are normalised over the whole vocabulary, or a pool whose share
# is lost.
def test_candidates_of_a_language_model():
    case = models.case("gpt2")
    data = rows.examples(case.rows[:2])
    fisher = fs.estimate(case.model, data, parameters="*ln_f*", fisher_type="mc", progress=False)
    top = fs.uncertainty(case.model, fisher, data, candidates=3, prior_precision=1.0)
    assert top.pooled and top.classes.shape[1] == 3 and top.outputs.shape[1] == 4
    np.testing.assert_allclose(top.probabilities.sum(1), 1)
    with torch.no_grad():
        logits = case.model(data[0].inputs["input_ids"][None]).logits[0, :-1]
    p = softmax(logits.numpy().astype(float), -1)
    np.testing.assert_allclose(
        softmax(top.outputs, -1)[:6, :3], np.take_along_axis(p, top.classes[:6], 1), rtol=1e-4
    )
    assert list(top.predictions["position"][:6]) == [1, 2, 3, 4, 5, 6]
    chosen = sorted({int(t) for e in data for t in e.labels[1:] if t >= 0})
    only = fs.uncertainty(case.model, fisher, data, candidates=chosen, prior_precision=1.0)
    assert not only.pooled and only.outcome == "too_few_examples"
    np.testing.assert_allclose(only.probabilities.sum(1), 1)


@pytest.mark.parametrize("kind", ["laplace", "cramer_rao", "monte_carlo"])
@pytest.mark.parametrize("name", ["llama-tied", "llama-classifier"])
def test_models_come_back_bitwise(name, kind):
    case = models.fresh(name)
    case.model.train()
    before = copy.deepcopy(case.model.state_dict())
    data = rows.examples(case.rows[:3])
    fisher = fs.estimate(
        case.model, data, structure="kfac", fisher_type="mc",
        parameters=["*norm*", "*score*", "*o_proj*"][: 3 if "class" in name else 1],
        progress=False,
    )  # fmt: skip
    state = torch.get_rng_state()
    found = fs.uncertainty(case.model, fisher, data, kind=kind, samples=3, candidates=2)
    assert found.probabilities is not None and np.isfinite(found.probabilities).all()
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in case.model.modules())
    for key, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


# Would catch: a covered part of the model taken for all of it: uncovered weights vary, too.
def test_uncovered_parameters_are_fixed():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    names = [n for n, _ in case.model.named_parameters()]
    last = fs.estimate(
        case.model, data, parameters=names[-2:], structure="dense", fisher_type="type-2",
        progress=False,
    )  # fmt: skip
    found = fs.uncertainty(case.model, last, data, prior_precision=1.0)
    posterior = Posterior(last, last.n_units, 1.0, 1.0)
    # The last layer is linear: J holds its inputs, and ones for the bias.
    seen: list[torch.Tensor] = []
    layers = [m for m in case.model.modules() if isinstance(m, nn.Linear)]
    handle = layers[-1].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        case.model(torch.stack([e.inputs["0"] for e in data]))
    handle.remove()
    h = torch.cat([seen[0], torch.ones(len(data), 1)], 1)[0].double()
    sigma = torch.linalg.inv(6 * last.dense() + torch.eye(last.n_parameters))
    c, d = layers[-1].weight.shape
    j = torch.zeros(c, last.n_parameters, dtype=torch.float64)
    for row in range(c):
        j[row, row * d : (row + 1) * d] = h[:d]
        j[row, c * d + row] = 1
    np.testing.assert_allclose(found.covariance[0], (j @ sigma @ j.T).numpy(), rtol=1e-4)
    assert posterior.effective_parameters() == pytest.approx(found.effective_parameters)
