"""The closed forms behind ``docs/fisher.md`` against enumeration of every draw."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "choosing" / "moments.py"
TOKENS, CLASSES, PARAMETERS = 2, 3, 4


def _load():
    spec = importlib.util.spec_from_file_location("choosing_moments", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


moments = _load()


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    jacobian = torch.randn(TOKENS, CLASSES, PARAMETERS, generator=g, dtype=torch.float64)
    p = torch.softmax(torch.randn(TOKENS, CLASSES, generator=g, dtype=torch.float64), -1)
    return jacobian, p


def draws(p: torch.Tensor, sampling: str):
    """Every (probability, u [classes]) of one token."""
    if sampling == "labels":
        return [(float(p[y]), torch.eye(len(p), dtype=p.dtype)[y] - p) for y in range(len(p))]
    root = p.sqrt().diag() - p.unsqueeze(1) * p.sqrt().unsqueeze(0)
    signs = itertools.product((-1.0, 1.0), repeat=len(p))
    return [(0.5 ** len(p), root @ torch.tensor(e, dtype=p.dtype)) for e in signs]


def enumerated(jacobian: torch.Tensor, p: torch.Tensor, sampling: str):
    """Probability [n] and summed score [n, parameters] of every joint draw."""
    weights, scores = [], []
    for joint in itertools.product(*(draws(row, sampling) for row in p)):
        weights.append(torch.tensor([w for w, _ in joint], dtype=p.dtype).prod())
        scores.append(sum(j.T @ u for j, (_, u) in zip(jacobian, joint, strict=True)))
    return torch.stack(weights), torch.stack(scores)


def variance(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    mean = weights @ values
    return weights @ values.square() - mean.square()


# Would catch: a cumulant with the wrong factor (kurtosis instead of its excess), signs whose
# correction is p d⁴ instead of p² d⁴, scores not centred, tokens squared apart.
@pytest.mark.parametrize("sampling", ["labels", "signs"])
def test_variances_are_those_of_all_draws(case, sampling):
    jacobian, p = case
    d = moments.centred(jacobian, p)
    weights, scores = enumerated(jacobian, p, sampling)
    found = moments.Cumulants.of(d, p)
    torch.testing.assert_close(found.variance, weights @ scores.square())
    torch.testing.assert_close(found.of_square(sampling), variance(weights, scores.square()))
    norms = scores.square().sum(1, keepdim=True)
    traces = moments.TraceMoments.of(d, p)
    torch.testing.assert_close(traces.mean, (weights @ norms)[0])
    torch.testing.assert_close(getattr(traces, sampling), variance(weights, norms)[0])


# Would catch: a token's own variance that holds the cross terms between tokens.
@pytest.mark.parametrize("sampling", ["labels", "signs"])
def test_variances_of_single_tokens(case, sampling):
    jacobian, p = case
    found = getattr(moments.TraceMoments.of(moments.centred(jacobian, p), p), f"token_{sampling}")
    for token in range(TOKENS):
        one = slice(token, token + 1)
        weights, scores = enumerated(jacobian[one], p[one], sampling)
        expected = variance(weights, scores.square().sum(1, keepdim=True))[0]
        torch.testing.assert_close(found[token], expected)


# The rule of thumb of the docs: of two classes, signs vary less unless both are likely.
def test_two_classes_cross_where_the_docs_say():
    for likelier, lower in ((0.6, "labels"), (0.70, "labels"), (0.72, "signs"), (0.95, "signs")):
        p = torch.tensor([[likelier, 1 - likelier]], dtype=torch.float64)
        jacobian = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
        found = moments.Cumulants.of(moments.centred(jacobian, p), p)
        by = {s: float(found.of_square(s)) for s in ("labels", "signs")}
        assert min(by, key=by.__getitem__) == lower
