"""The small language model that the estimators are compared on, and its text.

Characters of the help topics and of the source code that every Python carries; a vocabulary
of 64 keeps the exact expectation over labels within reach.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fisherscope.data import Example, examples
from fisherscope.demo.corpora import read_corpora

VOCABULARY = 64
WINDOW = 13  # characters of a row: 12 of them have a predecessor, and so a label
BATCH = 64
RATE = 3e-3


@dataclass(frozen=True)
class Text:
    """Encoded characters.

    Attributes:
        training: Task name to ids [characters] that models train on.
        held_out: Task name to ids that they are measured on.
    """

    training: dict[str, Tensor]
    held_out: dict[str, Tensor]


def read_text() -> Text:
    """The two running texts of the demo, in lower case; rare characters become one."""
    corpora = read_corpora()
    raw = {name: "\n".join(texts).lower() for name, texts in corpora.documents.items()}
    held_out = {
        name: "\n".join(row["text"] for row in corpora.held_out[name]).lower() for name in raw
    }
    frequent = Counter("".join(raw.values())).most_common(VOCABULARY - 1)
    number = {character: i + 1 for i, (character, _) in enumerate(sorted(frequent))}

    def encoded(texts: dict[str, str]) -> dict[str, Tensor]:
        return {
            name: torch.tensor([number.get(c, 0) for c in text]) for name, text in texts.items()
        }

    return Text(encoded(raw), encoded(held_out))


def new_model(seed: int) -> LlamaForCausalLM:
    """Two layers of width 32 with a tied head: 22,688 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).float().eval()


def windows(stream: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows [count, WINDOW] from random places of a text."""
    starts = torch.randint(len(stream) - WINDOW, (count, 1), generator=generator)
    return stream[starts + torch.arange(WINDOW)]


def rows(stream: Tensor, count: int, seed: int) -> list[Example]:
    """Examples from random places of a text, in the form that the library takes."""
    ids = windows(stream, count, torch.Generator().manual_seed(seed))
    return examples({"input_ids": ids, "labels": ids})


def loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean loss of a batch in nats per character."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def train(
    model: LlamaForCausalLM, stream: Tensor, steps: int, *, seed: int, rate: float = RATE
) -> None:
    """AdamW at a constant rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, windows(stream, BATCH, generator)).backward()
        optimizer.step()
    optimizer.zero_grad()
