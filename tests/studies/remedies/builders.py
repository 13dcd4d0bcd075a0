"""A new task that can be learnt in two ways, of which one leaves the old task alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fisherscope.studies.tuning import Schedule

HALF = 4
SCHEDULE = Schedule(steps=16, peak=0.1, weight_decay=0.0, clip=1e9)


class Linear(nn.Module):
    """Eight inputs of which the old task uses the first four."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * HALF, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Branches(nn.Module):
    """Four layers side by side; the old task never uses the last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(HALF, 1, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(HALF, 1)
        return sum(
            layer(part) for layer, part in zip((self.a, self.b, self.c, self.d), parts, strict=True)
        )


def fresh(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def tasks(model: nn.Module, blocks: int, rows: int = 80) -> tuple[tuple, tuple]:
    """Old and new examples: the old task's last block of inputs is zero, and in the new task all
    blocks are the same, so that any of them can learn it."""
    g = torch.Generator().manual_seed(1)
    old = torch.randn(rows, blocks * HALF, generator=g)
    old[:, -HALF:] = 0
    with torch.no_grad():
        answers = model(old)
    z = torch.randn(rows, HALF, generator=g)
    new = z.repeat(1, blocks)
    with torch.no_grad():
        wanted = model(new) + z.sum(1, keepdim=True)
    return (old, answers), (new, wanted)
