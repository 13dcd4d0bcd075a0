"""Linear layers that hold integers, the way quantising libraries store them."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bytes(nn.Linear):
    """One signed byte per weight and one scale per output."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.scale = nn.Buffer(layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.bias = layer.bias
        codes = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(self.pack(codes), requires_grad=False)

    def pack(self, codes: Tensor) -> Tensor:
        return codes

    def codes(self) -> Tensor:
        return self.weight

    def unpacked(self) -> Tensor:
        return self.codes() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unpacked().to(x.dtype), self.bias)


class Nibbles(Bytes):
    """Two weights in a byte, in one column: the shape says nothing about the matrix."""

    def pack(self, codes: Tensor) -> Tensor:
        codes = (codes // 16 + 8).to(torch.uint8).flatten()
        return (codes[::2] * 16 + codes[1::2]).unsqueeze(1)

    def codes(self) -> Tensor:
        pairs = torch.cat([self.weight // 16, self.weight % 16], 1)
        return (pairs.view(self.out_features, self.in_features).float() - 8) * 16


class _Viewing(torch.autograd.Function):
    """Returns a view, as the kernels of such libraries do, which nobody may change in place."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return (x.flatten(0, -2) @ w.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, g):
        return g @ ctx.saved_tensors[0], None


class Views(Bytes):
    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is None
        return _Viewing.apply(x, self.unpacked().to(x.dtype))


class _Straight(nn.Linear):
    """Answers like a layer that also rounds its input, differentiates like an exact one."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.rounding = [layer]  # in a list, so that it is no submodule
        self.matrix = matrix(layer)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = F.linear(x, self.matrix.to(x.dtype), self.bias)
            rounded = self.rounding[0](x.float()).to(x.dtype)
        return super().forward(x) + (rounded - exact)


def _bitsandbytes(layer: nn.Linear, bits: int) -> nn.Module:
    import bitsandbytes as bnb

    size, bias = (layer.in_features, layer.out_features), layer.bias is not None
    made = (
        bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False)
        if bits == 8
        else bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    )
    made.load_state_dict(layer.state_dict())
    return made.to(layer.weight.device)  # which is when it quantises


KINDS = {
    "bytes": Bytes,
    "nibbles": Nibbles,
    "views": Views,
    "bnb-8bit": lambda layer: _bitsandbytes(layer, 8),
    "bnb-4bit": lambda layer: _bitsandbytes(layer, 4),
}


def matrix(layer: nn.Linear) -> Tensor:
    """What a layer multiplies with: its answers to the unit vectors, or its own table."""
    if type(layer).__name__ == "Linear8bitLt":  # which answers in half precision
        layer(torch.zeros(1, layer.in_features))
        return layer.state.CB * layer.state.SCB.unsqueeze(1) / 127
    with torch.no_grad():
        zero = torch.zeros(1, layer.in_features)
        return (layer(torch.eye(layer.in_features)) - layer(zero)).T


def quantise(model: nn.Module, kind: str, endings: tuple[str, ...]) -> list[str]:
    """Replace linear layers in place; the names of their weights come back."""
    found = [name for name, _ in model.named_modules() if name.endswith(endings)]
    for name in found:
        model.set_submodule(name, KINDS[kind](model.get_submodule(name)).eval())
    return [f"{name}.weight" for name in found]


def unquantised(model: nn.Module) -> nn.Module:
    """A copy in which every such layer is a plain one that computes the same."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            own = model.get_submodule(name)
            size = own.in_features, own.out_features, own.bias is not None
            rounds = type(own).__name__ == "Linear8bitLt"
            plain = _Straight(own) if rounds else nn.Linear(*size)
            with torch.no_grad():
                plain.weight.copy_(matrix(own))
                if own.bias is not None:
                    plain.bias.copy_(own.bias)
            twin.set_submodule(name, plain)
    return twin
