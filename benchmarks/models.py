"""The models and batches of the benchmark: random weights, made in memory, nothing downloaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class Shape:
    """One row of the table: a model and the batch that it is given.

    Attributes:
        name: What the command line and the table call it.
        family: ``"gpt2"`` (tied head, Conv1D, LayerNorm), ``"llama"`` (untied head, RMSNorm,
            grouped-query attention) or ``"resnet"``.
        batch: Examples.
        length: Tokens of an example; side of the image for the ResNet.
        width: Hidden size; channels of the first stage for the ResNet.
        layers: Transformer layers; ignored for the ResNet.
        heads: Attention heads.
        vocabulary: Tokens known; classes for the ResNet.
    """

    name: str
    family: str
    batch: int
    length: int
    width: int = 256
    layers: int = 4
    heads: int = 8
    vocabulary: int = 2048

    @property
    def is_lm(self) -> bool:
        """Whether the data are token ids."""
        return self.family != "resnet"

    def with_batch(self, batch: int) -> Shape:
        """The same model on another number of examples."""
        return dataclasses.replace(self, batch=batch)

    def describe(self) -> str:
        """The shape in words, for the table's legend."""
        if not self.is_lm:
            return f"{self.batch} images of {self.length}×{self.length}, width {self.width}"
        return (
            f"{self.batch} rows of {self.length} tokens, {self.layers} layers of width "
            f"{self.width}, {self.heads} heads, vocabulary {self.vocabulary:,}"
        )


def _language_models(family: str) -> list[Shape]:
    return [
        Shape(f"{family}-16x128", family, 16, 128),
        Shape(f"{family}-64x32", family, 64, 32),
        Shape(f"{family}-4x512", family, 4, 512),
        Shape(f"{family}-width768", family, 8, 128, width=768, layers=2),
        Shape(f"{family}-vocab32k", family, 8, 128, vocabulary=32_768),
    ]


SHAPES = {
    shape.name: shape
    for shape in [
        *_language_models("gpt2"),
        *_language_models("llama"),
        Shape("resnet", "resnet", 64, 32, width=32, vocabulary=10),
    ]
}


def tiny(shape: Shape) -> Shape:
    """A twin with the same code path and almost no memory; used to warm up before measuring."""
    if shape.is_lm:
        return dataclasses.replace(
            shape, batch=2, length=8, width=32, layers=1, heads=4, vocabulary=64
        )
    return dataclasses.replace(shape, batch=2, length=8, width=8)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))


class SmallResNet(nn.Module):
    """Three residual blocks of growing width, batch norm, a linear classifier."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 4 * width, 2),
        )
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


def build(shape: Shape, seed: int = 0) -> nn.Module:
    """The model of a shape in eval mode, without dropout, the same for the same seed."""
    torch.manual_seed(seed)
    common = {"vocab_size": shape.vocabulary, "use_cache": False, "bos_token_id": 0}
    common["eos_token_id"] = 0
    if shape.family == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        model: nn.Module = GPT2LMHeadModel(
            GPT2Config(
                n_layer=shape.layers,
                n_embd=shape.width,
                n_head=shape.heads,
                n_positions=max(shape.length, 128),
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
    elif shape.family == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.width,
                intermediate_size=16 * math.ceil(shape.width * 8 / 3 / 16),
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.heads // 2,
                max_position_embeddings=max(shape.length, 128),
                tie_word_embeddings=False,
                **common,
            )
        )
    else:
        model = SmallResNet(shape.width, shape.vocabulary)
    # Unit scales and zero biases are symmetric: a wrong norm or bias rule could hide in them.
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def data(shape: Shape, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets; for a language model both are the token ids (shifted in the loss)."""
    generator = torch.Generator().manual_seed(seed)
    if not shape.is_lm:
        images = torch.randn(shape.batch, 3, shape.length, shape.length, generator=generator)
        return images, torch.randint(0, shape.vocabulary, (shape.batch,), generator=generator)
    # Log-uniform ids repeat inside a row as those of real text do.
    uniform = torch.rand((shape.batch, shape.length), generator=generator)
    ids = (shape.vocabulary**uniform).long().clamp_(0, shape.vocabulary - 1)
    return ids, ids


def logits(
    shape: Shape, model: nn.Module, x: torch.Tensor, expand_positions: bool = False
) -> torch.Tensor:
    """The model's output; ``expand_positions`` gives GPT-2's positions a real batch dimension."""
    if not shape.is_lm:
        return model(x)
    if expand_positions and shape.family == "gpt2":
        positions = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        return model(input_ids=x, position_ids=positions).logits
    return model(input_ids=x).logits


def negative_log_likelihood(
    shape: Shape, output: torch.Tensor, y: torch.Tensor, reduction: str = "sum"
) -> torch.Tensor:
    """Summed over examples (or one number an example), summed over tokens within an example."""
    if not shape.is_lm:
        return F.cross_entropy(output, y, reduction=reduction)
    if reduction == "sum":
        return F.cross_entropy(output[:, :-1].flatten(0, 1), y[:, 1:].flatten(), reduction="sum")
    return F.cross_entropy(output[:, :-1].transpose(1, 2), y[:, 1:], reduction="none").sum(1)


def loss(
    shape: Shape,
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    expand_positions: bool = False,
) -> torch.Tensor:
    """Negative log-likelihood of the batch, summed."""
    return negative_log_likelihood(shape, logits(shape, model, x, expand_positions), y)
