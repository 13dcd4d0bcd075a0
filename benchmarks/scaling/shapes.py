"""The models of the page on scale: GPT-2 shapes with random weights, made in memory."""

from __future__ import annotations

SEQUENCES, LENGTH, BATCH = 32, 256, 4
MEMORY_LIMIT = "1GB"
"""Most memory for the sums: those of the largest size take 1.4 GB, and two passes."""

# Parameters, about: width, layers, heads; the vocabulary is GPT-2's.
SIZES = {
    "10M": (192, 2, 3),
    "40M": (448, 7, 7),
    "124M": (768, 12, 12),
    "350M": (1024, 24, 16),
}
STRUCTURES = ("diagonal", "grouped")
ON_DISK = "diagonal, on disk"
"""Sums in memory-mapped files from the beginning, without a limit; for one size."""


def model(size: str):
    """A GPT-2 in eval mode."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    width, layers, heads = SIZES[size]
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads)).eval()


def data(sequences: int = SEQUENCES, length: int = LENGTH) -> dict:
    """Random tokens; every one but the first is predicted."""
    import torch

    g = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(50257, (sequences, length), generator=g)}
