"""The fused head, which never holds all logits, against the plain one and brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine import head as head_module
from fisherscope.engine import verify
from fisherscope.engine.head import PlainHead, model_output
from fisherscope.errors import LikelihoodError
from oracles import brute, models, rows
from oracles.checks import check, compare

FUSED = ("gpt2", "llama-tied", "llama-untied", "opt", "bert-mlm", "albert-mlm", "lora")


def is_fused(fisher: fs.Fisher) -> bool:
    return any("fused" in rule for rule in fisher.coverage.values())


# Would catch: a head that is not fused although it could be (the speed would be gone), or one
# that is although logits are capped, pooled or reordered after it.
@pytest.mark.parametrize("name", [*FUSED, "gemma2", "bert", "albert"])
def test_which_heads_are_fused(name):
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert is_fused(fisher) == (name in FUSED)


# Would catch: a difference between the two heads in any unit, also for drawn labels.
@pytest.mark.parametrize(
    "options",
    [{}, {"unit": "token"}, {"unit": "position"}, {"fisher_type": "mc", "draws": 3}],
    ids=["example", "token", "position", "mc"],
)
@pytest.mark.parametrize("name", FUSED)
def test_fused_equals_plain(monkeypatch, name, options):
    case = models.case(name)
    data = rows.examples(case.rows)
    fused = fs.estimate(case.model, data, progress=False, **options)
    monkeypatch.setattr(verify, "_head", lambda model, likelihood, *rest: PlainHead(likelihood))
    plain = fs.estimate(case.model, data, progress=False, **options)
    assert is_fused(fused) and not is_fused(plain)
    position = options.get("unit") == "position"
    compare(fused.sums, plain.sums, lambda n: case.vanishes(n) and not position)


# Would catch: chunks that lose rows or the pairing of a tied head with its embedding, a chunk
# that is wider than its first example. One example per chunk, then two.
@pytest.mark.parametrize("elements", [1, 2 * 40 * 8])
@pytest.mark.parametrize("unit", ["example", "token", "position"])
@pytest.mark.parametrize("name", ["llama-tied", "bert-mlm"])
def test_chunks_of_the_fused_head(monkeypatch, name, unit, elements):
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", elements)
    case = models.case(name)
    check(fs.estimate(case.model, rows.examples(case.rows), unit=unit, progress=False), name)


def long_prompts() -> list[rows.Row]:
    """Few supervised tokens at the end of, in the middle of and all over long rows."""
    data = rows.text((12, 14, 13, 9), vocabulary=700, seed=3)
    for row, keep in zip(data, ([10, 11], [5], range(13), [0, 8]), strict=True):
        labels = torch.full_like(row.labels, -100)
        labels[list(keep)] = row.inputs["input_ids"][list(keep)]
        row.labels.copy_(labels)
    return data


# Would catch: gathering supervised positions of rows that differ in number and place (the
# rest of a shorter row would be scored as label 0, or scattered over a real position).
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("unit", ["example", "token"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_large_vocabulary_with_masked_prompts(tied, unit, size):
    model, twin = large(tied)
    data = long_prompts()
    fisher = fs.estimate(model, rows.examples(data), unit=unit, batch_size=size, progress=False)
    assert is_fused(fisher)
    compare(fisher.sums, brute.diagonal(twin, data, "causal-lm", unit)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_draws_from_a_large_vocabulary_with_masked_prompts(tied):
    model, twin = large(tied)
    data = long_prompts()
    options = {"fisher_type": "mc", "draws": 2, "seed": 5, "progress": False}
    fisher = fs.estimate(model, rows.examples(data), **options)
    compare(fisher.sums, brute.mc(twin, data, "causal-lm", 5, 2)[0])


_LARGE: dict[bool, tuple[nn.Module, nn.Module]] = {}


def large(tied: bool) -> tuple[nn.Module, nn.Module]:
    if tied not in _LARGE:
        torch.manual_seed(8)
        options = {"vocab_size": 700, "num_hidden_layers": 1, "tie_word_embeddings": tied}
        model = models.randomise(models.llama(**options))
        _LARGE[tied] = model, brute.double(model)
    return _LARGE[tied]


class Biased(nn.Module):
    """A head with a bias, and another use of its weight when asked for."""

    def __init__(self, twice: bool):
        super().__init__()
        self.twice = twice
        self.embed = nn.Embedding(20, 6)
        self.mix = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 20)
        self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None):
        h = self.mix(self.embed(input_ids))
        h = torch.tanh(h + h.cumsum(1))
        if self.twice:
            h = h + torch.tanh(nn.functional.linear(h, self.embed.weight)) @ self.embed.weight
        return self.lm_head(h)


# Would catch: a head's bias left out; a tied table with a third use booked as if it had two.
@pytest.mark.parametrize("twice", [False, True])
def test_a_head_with_bias_and_with_a_third_use(twice):
    torch.manual_seed(3)
    model = models.randomise(Biased(twice))
    data = rows.text(vocabulary=20)
    fisher = fs.estimate(model, rows.examples(data), likelihood="causal-lm", progress=False)
    compare(fisher.sums, brute.diagonal(brute.double(model), data, "causal-lm")[0])
    assert ("head bias" in fisher.coverage["lm_head.bias"]) or twice


# Would catch: a head asked for alone, or everything but the head, or a table but not its tie.
@pytest.mark.parametrize("patterns", ["lm_head*", "*layers*", "*embed*"])
@pytest.mark.parametrize("name", ["llama-tied", "llama-untied"])
def test_parts_of_a_model_with_a_fused_head(name, patterns):
    case = models.case(name)
    data = rows.examples(case.rows)
    check(fs.estimate(case.model, data, parameters=patterns, progress=False), name)


@pytest.mark.parametrize("returned", [None, {"loss": 1}, ("x",), []])
# Would catch: an AttributeError from deep inside for a model that returns no logits.
def test_output_without_logits(returned):
    with pytest.raises(LikelihoodError, match="logits"):
        model_output(returned)


# Would catch: only transformers' output class understood.
def test_output_in_any_container():
    x = torch.zeros(1)
    for returned in (x, {"logits": x}, (x, "cache"), [x], type("Output", (), {"logits": x})()):
        assert model_output(returned) is x


class Detached(nn.Module):
    """A tied table that is also looked up where no gradient arrives, at other ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.mix = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 20, bias=False)
        self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None):
        gate = torch.sigmoid(self.embed((input_ids * 7 + 3) % 20).detach())
        h = self.mix(self.embed(input_ids)) * gate
        return self.lm_head(torch.tanh(h + h.cumsum(1)))


# Would catch: cross terms of head and table paired with ids whose look-up got no gradient.
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_tied_table_with_a_look_up_that_gets_no_gradient(size):
    torch.manual_seed(3)
    model = models.randomise(Detached())
    data = rows.text(vocabulary=20)
    options = {"likelihood": "causal-lm", "batch_size": size, "progress": False}
    fisher = fs.estimate(model, rows.examples(data), **options)
    compare(fisher.sums, brute.diagonal(brute.double(model), data, "causal-lm")[0])
