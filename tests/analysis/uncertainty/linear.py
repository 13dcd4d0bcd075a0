"""Linear models in float64, whose posteriors are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import fisherscope as fs


@dataclass(frozen=True)
class Bayesian:
    """Bayesian linear regression with prior N(0, 1/δ) and noise variance σ², in closed form.

    The bias is a column of ones, so that everything is one Gaussian. Source: MacKay (1992).
    """

    x: np.ndarray
    y: np.ndarray
    delta: float
    noise: float

    @property
    def design(self) -> np.ndarray:
        return np.column_stack([self.x, np.ones(len(self.x))])

    @property
    def covariance(self) -> np.ndarray:
        a = self.design
        return np.linalg.inv(a.T @ a / self.noise + self.delta * np.eye(a.shape[1]))

    @property
    def mean(self) -> np.ndarray:
        return self.covariance @ self.design.T @ self.y / self.noise

    def log_evidence(self) -> float:
        """Of the targets' own distribution N(0, A Aᵀ / δ + σ²): no Laplace, no logdet of P."""
        a = self.design
        c = a @ a.T / self.delta + self.noise * np.eye(len(a))
        quadratic = self.y @ np.linalg.solve(c, self.y)
        return -0.5 * (quadratic + np.linalg.slogdet(c)[1] + len(a) * np.log(2 * np.pi))

    def log_likelihood(self) -> float:
        away = self.y - self.design @ self.mean
        n = len(away)
        return -0.5 * (away @ away / self.noise + n * np.log(2 * np.pi * self.noise))

    def model(self) -> nn.Linear:
        """A linear layer at the posterior's mean."""
        layer = nn.Linear(self.x.shape[1], 1).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.mean[None, :-1]))
            layer.bias.copy_(torch.from_numpy(self.mean[-1:]))
        return layer


def regression(n: int = 20, d: int = 3, delta: float = 0.7, noise: float = 0.3) -> Bayesian:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d))
    y = x @ rng.standard_normal(d) + 0.4 + noise**0.5 * rng.standard_normal(n)
    return Bayesian(x, y, delta, noise)


def real(x: np.ndarray, y: np.ndarray | None = None) -> list[fs.Example]:
    return [
        fs.Example(
            f"row-{i}",
            {"0": torch.from_numpy(one)},
            None if y is None else torch.tensor([y[i]], dtype=torch.float64),
        )
        for i, one in enumerate(x)
    ]


def classes(x: np.ndarray, y: np.ndarray | None = None) -> list[fs.Example]:
    return [
        fs.Example(
            f"row-{i}",
            {"0": torch.from_numpy(one)},
            None if y is None else torch.tensor(int(y[i])),
        )
        for i, one in enumerate(x)
    ]


def fit(model: nn.Module, x: np.ndarray, y: np.ndarray, decay: float = 0.0) -> nn.Module:
    """To the maximum of the (penalised) likelihood."""
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    found = torch.optim.LBFGS(model.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def closure():
        found.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        loss = loss + 0.5 * decay * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    found.step(closure)
    for p in model.parameters():
        p.grad = None
    return model.eval()
