"""Results of a small percolation study of two models, as a command leaves them."""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from fisherscope.results import plain

MODELS, TASKS = ("base", "<i>$tuned$"), ("code", "a & b")


def network(seed):
    """A network that knows both tasks."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(60):
        loss = sum(F.cross_entropy(net(x), y) for x, y in rows().values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return net


@cache
def rows():
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 3, generator=g)
    found = {}
    for i, task in enumerate(TASKS):
        x = torch.randn(40, 4, generator=g) + i
        found[task] = (x, (x @ teacher).argmax(1))
    return found


@cache
def _studies():
    studies = {}
    for seed, name in enumerate(MODELS):
        model = network(seed)
        fishers = {t: fs.estimate(model, [r], progress=False) for t, r in rows().items()}
        studies[name] = fs.percolation(
            model, fishers, {t: [r] for t, r in rows().items()}, name=name, points=6,
            repetitions=2, side=3, candidates=2, levels=("weight", "neuron"),
        )  # fmt: skip
    return studies


def content(*, alone=False):
    """A results dictionary.

    Args:
        alone: Of the first model only.

    Returns:
        A fresh copy.
    """
    studies = _studies()
    found = studies[MODELS[0]] if alone else fs.compare_percolation(studies)
    return copy.deepcopy(
        plain({
            "format": 1,
            "kind": "percolation",
            "title": "Percolation",
            "findings": found.findings(),
            "models": {name: {"source": name} for name in MODELS},
            "tasks": {name: {"n_examples": 40} for name in TASKS},
            "settings": {},
            "study": found.to_dict(),
        })
    )
