"""Hypothesis draws lengths, prompts, holes, batch sizes and layouts; brute force is the judge."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fisherscope as fs
from fisherscope.data import Example
from oracles import brute, models, rows
from oracles.checks import compare

VOCABULARY = 11
# Rows of one repeated token make whole tensors vanish, others nearly so.
FLOOR = 1e-3


@cache
def pair(kind: str) -> tuple[nn.Module, nn.Module, str]:
    torch.manual_seed(4)
    size = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 1}
    if kind == "llama":
        model = models.llama(**size, tie_word_embeddings=True)
    elif kind == "gpt2":
        model = models.gpt2(vocab_size=VOCABULARY, n_embd=8, n_layer=1)
    else:
        model = models.bert(True, **size)
    models.randomise(model)
    return model, brute.double(model), "masked-lm" if kind == "bert" else "causal-lm"


@st.composite
def data(draw, holes: bool) -> list[rows.Row]:
    found = []
    for number in range(draw(st.integers(1, 5))):
        length = draw(st.integers(2, 7))
        ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length))
        keep = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        keep[draw(st.integers(1, length - 1))] = True
        labels = [i if k else -100 for i, k in zip(ids, keep, strict=True)]
        inputs = {"input_ids": torch.tensor(ids)}
        if holes:
            # The first position stays: in a causal model it has nothing else to attend to.
            mask = [1, *draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))]
            inputs["attention_mask"] = torch.tensor(mask)
        found.append(rows.Row(f"row-{number}", inputs, torch.tensor(labels)))
    return found


SETTINGS = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


# Would catch: any dependence on how rows of unlike lengths and masks meet in a batch, labels
# gathered at the wrong places, rows of one token, batches of one.
@SETTINGS
@given(
    data(holes=False),
    st.sampled_from(["llama", "gpt2", "bert"]),
    st.sampled_from(["example", "token"]),
    st.integers(1, 6),
    st.sampled_from(sorted(rows.LAYOUTS)),
)
def test_ragged_rows(data, kind, unit, size, layout):
    model, twin, likelihood = pair(kind)
    made = rows.LAYOUTS[layout](data)
    fisher = fs.estimate(model, made, unit=unit, batch_size=size, progress=False)
    expected, _ = brute.diagonal(twin, data, likelihood, unit)
    compare(fisher.sums, expected, floor=FLOOR)
    assert fisher.n_tokens == sum(len(brute.supervised(r, likelihood)[0]) for r in data)


# Would catch: a mask with holes dropped, or mistaken for padding.
@SETTINGS
@given(data(holes=True), st.sampled_from(["llama", "gpt2", "bert"]), st.integers(1, 6))
def test_masks_with_holes(data, kind, size):
    model, twin, likelihood = pair(kind)
    made = [Example(r.id, r.inputs, r.labels) for r in data]
    fisher = fs.estimate(model, made, batch_size=size, progress=False)
    expected, _ = brute.diagonal(twin, data, likelihood)
    compare(fisher.sums, expected, floor=FLOOR)
