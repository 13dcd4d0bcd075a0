"""Small hand-made networks, each with something that breaks careless engines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class MLP(nn.Module):
    def __init__(self, outputs: int):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = nn.Linear(8, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(torch.tanh(self.first(x)))))


class Thin(nn.Module):
    """Widths of one, where a group of one looks like a whole row and a row like a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 1)
        self.wide = nn.Linear(1, 4)
        self.narrow = nn.Linear(4, 1)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.wide(self.table(ids)))
        return self.head(self.norm(torch.cat([self.narrow(h), h[..., :1]], -1))).sum(1)


class _Residual(nn.Module):
    """Strided grouped convolution; the in-place ReLU overwrites what the norm returned."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(_Residual(8, 8, 1), _Residual(8, 16, 2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        return self.head(self.blocks(x).mean((2, 3)))


class Signals(nn.Module):
    """One-dimensional, dilated and transposed convolutions, group and instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, stride=2, padding=2, dilation=2)
        self.norm = nn.GroupNorm(3, 6)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, groups=2)
        self.inorm = nn.InstanceNorm1d(4, affine=True)
        self.layer = nn.LayerNorm((4, 9))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        x = self.layer(torch.tanh(self.inorm(self.up(x))))
        return self.head(x.square().mean(2))


class Planes(nn.Module):
    """Transposed convolutions, one with groups, one with dilation and output padding."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 2, padding="same", padding_mode="circular")
        self.up = nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2)
        self.norm = nn.GroupNorm(2, 6)
        self.out = nn.ConvTranspose2d(6, 3, 2, stride=(2, 1), dilation=2, output_padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.up(torch.tanh(self.down(x)))))
        return self.out(x).square().mean((2, 3))


class Volumes(nn.Module):
    """Three dimensions down and up, a group norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 6, (2, 3, 1), stride=(1, 2, 2), padding=(0, 1, 0))
        self.norm = nn.GroupNorm(3, 6)
        self.up = nn.ConvTranspose3d(6, 4, (1, 2, 2), stride=(1, 2, 1), bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(torch.tanh(self.norm(self.down(x)))))
        return self.head(x.flatten(2).square().mean(2))


class Recurrent(nn.Module):
    """Two layers in both directions, their weights used at every step inside one kernel."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.cells = kind(5, 3, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(torch.tanh(self.embed(x)))[0].mean(1))


class WeightNorm(nn.Module):
    """Weights made of a direction and a length: per output, per input, and in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3))
        self.middle = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).transpose(1, 2)
        return self.head(torch.tanh(self.middle(x)).mean(1))


class Attention(nn.Module):
    """nn.MultiheadAttention uses in_proj and out_proj without calling modules; [T, B, F] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.tanh(x).mean(0))


class Functional(nn.Module):
    """A weight also used outside its module, once transposed: a hook sees only a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.tied = nn.Linear(6, 4)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.tied(h) + F.linear(h, self.tied.weight))
        return self.head(h @ self.tied.weight)


class Reused(nn.Module):
    """One Linear applied twice, once more without gradient, its weight tied to a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.layer = nn.Linear(6, 6)
        self.twin = nn.Linear(6, 6)
        self.twin.weight = self.layer.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        gate = torch.sigmoid(self.layer(h)).detach()
        h = torch.tanh(self.layer(h)) * gate
        return self.head(self.twin(torch.tanh(self.layer(h))))


class _Scaled(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.linear(self.norm(x)))


class LayerScale(nn.Module):
    """Raw parameters inside and outside blocks that may be checkpointed.

    Args:
        reentrant: Kind of checkpointing; ``None`` for none.
    """

    def __init__(self, reentrant: bool | None = None):
        super().__init__()
        self.reentrant = reentrant
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(_Scaled(8) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.temperature = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x) * self.temperature


class Experts(nn.Module):
    """Linear experts that get whichever positions choose them, in one flat batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        route = (x[..., 0] > 1).long() + (x[..., 0] > 2).long()
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            chosen = route == number
            if chosen.any():
                out[chosen] = expert(h[chosen])
        return self.head(torch.tanh(out).mean(1))


class RunningNorm(nn.Module):
    """A norm of no known class that keeps statistics while it trains."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.offset = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.detach().flatten(0, -2).mean(0))
            x = F.dropout(x, 0.5)
        return (x - self.mean) * (1 + self.gain) + self.offset


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = RunningNorm(6)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.drop(torch.tanh(self.norm(self.first(x))))))


class Unused(nn.Module):
    """A raw parameter that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.never = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Mixed(nn.Module):
    """Centres its batch, so that an example in a batch is another one than alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(0) * (len(x) > 1)
        return self.head(torch.tanh(self.first(x)))
