"""Models that are nothing but named parameters, with Fishers whose explicit matrix is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.structures import Fisher
from structures.matrices import CASES, explicit, make


class Bag(nn.Module):
    """Parameters under given names."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))


def bag(shapes, seed=0, dtype=torch.float64) -> Bag:
    g = torch.Generator().manual_seed(seed)
    return Bag({n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype)
                for n, s in shapes.items()})  # fmt: skip


def own(case: str, model: nn.Module, seed: int, **fields) -> Fisher:
    """A Fisher of random sums that says it was estimated on the model."""
    ids = "abcde"[: 3 + seed % 3]  # so that denominators differ
    return make(case, seed=seed, ids=ids, model_fingerprint=model_fingerprint(model), **fields)


def pair(case: str, count: int = 2, **fields) -> tuple[list[Bag], list[Fisher]]:
    models = [bag(CASES[case].parameters, seed) for seed in range(count)]
    return models, [own(case, m, 10 + i, **fields) for i, m in enumerate(models)]


def matrix(fisher: Fisher) -> np.ndarray:
    """Mean per unit, never through the code under test."""
    return explicit(fisher) / fisher.n_units


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])
