"""The demo's small language model before training, and the running text that it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fisherscope.data import Batch
from fisherscope.demo.tokenizer import BEGIN_ID, CONTEXT, END_ID, PAD_ID
from fisherscope.studies.tuning import Draw


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make an untrained model: 4 layers of width 192, grouped-query attention, tied head.

    Args:
        tokenizer: Gives the size of the vocabulary.
        seed: Of the weights; the global random state is left as it was.

    Returns:
        The model on the CPU, in float32.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    # The constructor draws from the global generator; what it drew is replaced below.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).float()
    generator = torch.Generator().manual_seed(seed)
    into_residual = ("o_proj.weight", "down_proj.weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            if "embed" in name:
                # Tied to the head: learns clearly faster than from the usual 0.02.
                spread = 0.05
            elif name.endswith(into_residual):
                # Every layer adds twice to the residual stream.
                spread = 0.02 / math.sqrt(2 * config.num_hidden_layers)
            else:
                spread = 0.02
            parameter.normal_(0.0, spread, generator=generator)
    return model


def text_batches(
    tokenizer: PreTrainedTokenizerFast, streams: Sequence[tuple[Sequence[str], int]], window: int
) -> Draw:
    """Draw windows of running text, each after a begin token.

    Args:
        tokenizer: Of the model.
        streams: Texts, and how many windows of them stand in each batch.
        window: Tokens per row.

    Returns:
        A function from a generator to a batch without padding.
    """
    joined = []
    for texts, count in streams:
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for row in encoded for token in (*row, END_ID)]
        joined.append((torch.tensor(ids), count))
    offsets = torch.arange(window - 1)
    names = tuple(str(row) for row in range(sum(count for _, count in streams)))

    def draw(generator: torch.Generator) -> Batch:
        rows = []
        for stream, count in joined:
            starts = torch.randint(len(stream) - window, (count, 1), generator=generator)
            rows.append(stream[starts + offsets])
        ids = torch.nn.functional.pad(torch.cat(rows), (1, 0), value=BEGIN_ID)
        return Batch(names, {"input_ids": ids}, ids)

    return draw
