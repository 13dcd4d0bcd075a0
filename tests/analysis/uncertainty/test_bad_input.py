"""What ``fs.uncertainty`` refuses, by name and before any long work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from analysis.uncertainty.linear import classes, real, regression
from fisherscope.errors import DataError, IdentityError, LikelihoodError, ParameterError


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    rng = np.random.default_rng(0)
    data = classes(rng.standard_normal((5, 4)), rng.integers(0, 3, 5))
    return model, fs.estimate(model, data, fisher_type="type-2", progress=False), data


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "bayes"}, "kind='bayes' is unknown; use one of"),
        ({"link": "logit"}, "link='logit'"),
        ({"prior_precision": -1.0}, "prior_precision=-1.0 must be"),
        ({"prior_precision": float("nan")}, "prior_precision=nan must be"),
        ({"prior_precision": "evidence"}, "prior_precision='evidence' must be"),
        ({"prior_precision": "grid"}, "pass calibration_batch="),
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
        ({"samples": 1}, "samples=1 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"observations": 0}, "observations=0 must be"),
        ({"noise_variance": 2.0}, "noise_variance= is for a regression"),
        ({"candidates": 0}, "candidates=0: ask about at least one class"),
        ({"candidates": [1]}, "two or more different classes"),
        ({"candidates": [0, 3]}, r"candidates\[1\]=3 must be a whole number between 0 and 2"),
    ],
)
def test_options(case, options, said):
    model, fisher, data = case
    with pytest.raises(ParameterError, match=said.replace("(", r"\(")):
        fs.uncertainty(model, fisher, data, **options)


def test_fisher_of_another_model(case):
    _, fisher, data = case
    torch.manual_seed(1)
    with pytest.raises(IdentityError, match="the Fisher is of another model"):
        fs.uncertainty(nn.Linear(4, 3).double(), fisher, data)
    with pytest.raises(ParameterError, match="model does not have the Fisher's parameters"):
        fs.uncertainty(nn.Linear(4, 2).double(), fisher, data)
    with pytest.raises(ParameterError, match="fisher is a dict"):
        fs.uncertainty(case[0], {}, data)


def test_labels(case):
    model, fisher, data = case
    x = np.zeros((2, 4))
    with pytest.raises(LikelihoodError, match="label 3, but the model has 3 classes"):
        fs.uncertainty(model, fisher, classes(x, np.array([0, 3])))
    with pytest.raises(DataError, match="the label 2 is not among candidates"):
        fs.uncertainty(model, fisher, classes(x, np.array([0, 2])), candidates=[0, 1])
    with pytest.raises(DataError, match="calibration_batch has no labels"):
        fs.uncertainty(model, fisher, data, calibration_batch=classes(x))


# Five examples say nothing about most directions.
# Would catch: infinite standard errors, or a silent damping.
@pytest.mark.parametrize("kind", ["laplace", "cramer_rao", "monte_carlo"])
def test_singular_without_a_prior(case, kind):
    model, _, data = case
    fisher = fs.estimate(model, data[:2], structure="dense", fisher_type="type-2", progress=False)
    with pytest.raises(ParameterError, match="prior_precision=0 leaves no finite variance"):
        fs.uncertainty(model, fisher, data, kind=kind, prior_precision=0)
    found = fs.uncertainty(model, fisher, data, kind=kind, prior_precision=1e-3, samples=2)
    assert np.isfinite(found.predictions["confidence_sd"]).all()


def test_candidates_of_a_regression():
    known = regression()
    model, data = known.model(), real(known.x, known.y)
    fisher = fs.estimate(model, data, fisher_type="type-2", progress=False)
    with pytest.raises(ParameterError, match="a regression has none"):
        fs.uncertainty(model, fisher, data, candidates=2)
