"""Labels for masked language models."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch

from fisherscope.data.examples import IGNORED, Example
from fisherscope.data.identity import keyed_uniforms
from fisherscope.errors import DataError, ParameterError


def mask_tokens(
    examples: Iterable[Example],
    mask_token_id: int,
    special_ids: Collection[int],
    *,
    probability: float = 0.15,
    seed: int = 0,
) -> list[Example]:
    """Hide tokens behind the mask token and ask for them in the labels.

    Which tokens are hidden is a function of (seed, id, position), so neither the order of
    the examples nor what else is in the data set changes it. Every chosen token becomes the
    mask token: unlike in pretraining none is kept or replaced by a random one, so that
    every label is a prediction for a masked position.

    Args:
        examples: Examples with ``input_ids``; their labels are not looked at.
        mask_token_id: Id of the mask token.
        special_ids: Ids that are never hidden, such as ``tokenizer.all_special_ids``.
        probability: Chance of each token to be hidden. An example in which no token was
            drawn hides the one that came closest.
        seed: Any integer.

    Returns:
        New examples with int64 labels of shape [T]: the token's id where it was hidden,
        -100 elsewhere.

    Raises:
        DataError: If an example has no ``input_ids``, or no token that may be hidden.
        ParameterError: If ``probability`` is not in (0, 1].
    """
    if not 0.0 < probability <= 1.0:
        raise ParameterError(f"probability={probability!r}: pass a number above 0, up to 1")
    kept = torch.tensor(sorted(special_ids), dtype=torch.int64)
    masked = []
    for example in examples:
        tokens = example.inputs.get("input_ids")
        if tokens is None or tokens.ndim != 1:
            raise DataError(
                f"example {example.id!r} has no sequence input_ids: masking needs tokens; its "
                f"inputs are {sorted(example.inputs)}"
            )
        free = ~torch.isin(tokens, kept.to(tokens.device))
        attention = example.inputs.get("attention_mask")
        if attention is not None and attention.shape == tokens.shape:
            free &= attention != 0
        if not bool(free.any()):
            raise DataError(
                f"example {example.id!r} has no token that may be masked, only special ones and "
                "padding: drop it"
            )
        # A name of its own keeps these numbers apart from those that sample labels with the seed.
        positions = np.arange(len(tokens))[None]
        drawn = torch.from_numpy(keyed_uniforms(seed, [f"mask {example.id}"], positions, 0)[0])
        drawn = drawn.to(tokens.device).masked_fill(~free, 2.0)
        hidden = drawn < probability
        hidden[drawn.argmin()] = True
        inputs = example.inputs | {"input_ids": tokens.masked_fill(hidden, mask_token_id)}
        labels = tokens.long().masked_fill(~hidden, IGNORED)
        masked.append(Example(example.id, inputs, labels))
    return masked
