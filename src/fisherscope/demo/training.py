"""Train the demo's small language model, first on running text, then on answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fisherscope.data import Batch, Example, batches, collate
from fisherscope.demo.tokenizer import BEGIN_ID, CONTEXT, END_ID, PAD_ID

Draw = Callable[[torch.Generator], Batch]

SMALLEST_RATE = 0.02


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How one model is trained.

    Attributes:
        steps: Optimiser steps.
        peak: Largest learning rate, reached after the warm-up.
        warmup: Share of the steps in which the rate rises; then it falls as half a cosine.
        weight_decay: Of matrices; norm scales are left alone.
        clip: Largest norm of the gradient.
    """

    steps: int
    peak: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        Args:
            step: Which step, counted from 0.

        Returns:
            A rate above 0 and at most ``peak``.
        """
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.peak * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * (SMALLEST_RATE + (1 - SMALLEST_RATE) * cosine)


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


def row_batches(rows: Sequence[Example], count: int) -> Draw:
    """Draw batches of examples of similar length, each once before any comes again.

    Args:
        rows: Examples with labels.
        count: Examples per batch.

    Returns:
        A function from a generator to a batch.
    """
    groups = [collate(group) for group in batches(rows, count)]
    waiting: list[int] = []

    def draw(generator: torch.Generator) -> Batch:
        if not waiting:
            waiting.extend(torch.randperm(len(groups), generator=generator).tolist())
        return groups[waiting.pop()]

    return draw


def train(
    model: LlamaForCausalLM,
    draw: Draw,
    schedule: Schedule,
    *,
    seed: int,
    label: str,
    progress: bool = True,
) -> tuple[float, ...]:
    """Train a model in place with AdamW.

    Args:
        model: The model; left in evaluation mode and without gradients.
        draw: Makes a batch from a generator.
        schedule: Steps and rates.
        seed: Of the generator that draws the batches.
        label: What the progress bar is called.
        progress: Whether to show it.

    Returns:
        Training loss of each step, in nats per token.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.dim() >= 2],
                "weight_decay": schedule.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    losses = []
    model.train()
    bar = tqdm(range(schedule.steps), desc=label, unit="step", disable=not progress)
    with torch.enable_grad():
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            batch = draw(generator)
            loss = batch.call(model, labels=batch.labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return tuple(losses)
