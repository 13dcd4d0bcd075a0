"""A rule is used only where it was seen to be right; everything else goes the slow way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine import observer, scores
from fisherscope.engine.head import FusedHead
from fisherscope.engine.layers.convolution import ConvolutionRule
from fisherscope.engine.layers.embedding import EmbeddingRule, TappedEmbeddingRule
from fisherscope.engine.layers.linear import LinearRule
from fisherscope.engine.layers.norm import AffineRule
from fisherscope.engine.verify import _parts, cover
from fisherscope.recognition import resolve
from oracles import brute, models, rows
from oracles.checks import check, compare, slow


def doubled(rule):
    """The same rule with all output gradients twice as large."""
    original = rule.scores

    def broken(self, saved, gradient, batch):
        return original(self, saved, 2 * gradient, batch)

    return broken


# Would catch: a verification that compares nothing, compares the wrong way round, or whose
# tolerance lets a factor pass; a slow path that is not exact; a plan that does not say so.
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("gpt2", LinearRule),
        ("gpt2", EmbeddingRule),
        ("gpt2", AffineRule),
        ("llama-tied", LinearRule),
        ("llama-untied", AffineRule),
        ("opt", TappedEmbeddingRule),
        ("albert", LinearRule),
        ("resnet", ConvolutionRule),
        ("resnet", AffineRule),
    ],
)
def test_a_broken_rule_sends_its_parameters_down_the_slow_path(monkeypatch, name, rule):
    monkeypatch.setattr(rule, "scores", doubled(rule))
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), batch_size=3, progress=False)
    check(fisher, name, covered=False)
    assert slow(fisher)
    assert all("disagrees with autograd" in fisher.coverage[n] for n in slow(fisher))
    plan = fs.plan(case.model, rows.examples(case.rows))
    assert set(plan.slow) == slow(fisher)


def covered(case, limit=None):
    data = rows.examples(case.rows)
    parameters = dict(case.model.named_parameters())
    return cover(case.model, resolve(case.model, "auto", data), data, parameters, limit)


# Planted: the noise below which a parameter's scores don't count taken from its own part; shared
# inputs seen by the first part's layers only; a part that is not looked at; the squares of one
# part compared with those of another. Would catch: other examples in other parts.
@pytest.mark.parametrize("broken", [None, LinearRule, AffineRule])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama-tied", "mixtral", "resnet", "layerscale", "bert", "fp16"]
)
def test_verifying_in_parts_finds_the_same(monkeypatch, name, broken):
    if broken is not None:
        monkeypatch.setattr(broken, "scores", doubled(broken))
    case = models.fresh("gpt2" if name == "fp16" else name)
    if name == "fp16":
        case.model.half()
    whole = covered(case)
    size = sum(8 * p.numel() for p in case.model.parameters())
    parts = _parts(dict(case.model.named_parameters()), size // 5)
    assert len(parts) >= 3
    found = covered(case, size // 5)
    for field in ("single", "outputs_second", "factored", "shared", "scale", "width"):
        assert getattr(found, field) == getattr(whole, field), field
    assert {n: t.split(" by ")[0] for n, t in found.text.items()} == {
        n: t.split(" by ")[0] for n, t in whole.text.items()
    }
    assert bool(found.slow) == (bool(broken) or name == "layerscale")


# Would catch: gradients of all parameters at once, whatever the limit; a parameter that is larger
# than the limit left out.
def test_parts_of_the_verification_are_full():
    sizes = {"a": 10, "b": 20, "huge": 500, "c": 1, "d": 2}
    parameters = {n: nn.Parameter(torch.zeros(size)) for n, size in sizes.items()}
    parts = _parts(parameters, 8 * 30)
    assert [list(part) for part in parts] == [["a", "b"], ["huge"], ["c", "d"]]
    assert [list(part) for part in _parts(parameters, 10**6)] == [list(sizes)]


# Would catch: a reason that has nothing to do with the parameter it is given for.
def test_the_reason_for_the_slow_path_names_the_owner():
    case = models.case("layerscale")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert fisher.coverage["temperature"].endswith(": LayerScale.temperature has no fast rule")
    case = models.case("unused")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert fisher.coverage["never"].endswith(": Unused.never has no fast rule")


# Would catch: the grouping of a parameter depending on which path it takes.
def test_a_transposed_weight_on_the_slow_path_is_still_grouped_by_outputs(monkeypatch):
    monkeypatch.setattr(LinearRule, "scores", doubled(LinearRule))
    case = models.case("gpt2")
    data = rows.examples(case.rows)
    fisher = fs.estimate(case.model, data, structure="grouped", progress=False)
    assert "transformer.h.0.mlp.c_fc.weight" in slow(fisher)
    check(fisher, "gpt2", covered=False)


# Would catch: an error inside a rule that reaches the user although the model is fine.
@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError])
def test_a_rule_that_raises_sends_its_parameters_down_the_slow_path(monkeypatch, error):
    def raising(self, saved, gradient, batch):
        raise error("no")

    monkeypatch.setattr(AffineRule, "scores", raising)
    case = models.case("llama-untied")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    check(fisher, "llama-untied", covered=False)
    assert slow(fisher) >= {n for n in fisher.sums if "norm" in n}


# Would catch: a tied head whose cross terms with the embedding are lost, which is the classic
# error; here they are lost on purpose. The plain head or the slow path must take over.
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bert-mlm"])
def test_lost_cross_terms_of_a_tied_head_are_noticed(monkeypatch, name):
    original = scores.cross_rows
    monkeypatch.setattr(observer, "cross_rows", lambda head, ids: 0 * original(head, ids))
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    check(fisher, name, covered=False)
    assert len(slow(fisher)) == 1
    assert slow(fisher) & {
        "transformer.wte.weight",
        "model.embed_tokens.weight",
        "bert.embeddings.word_embeddings.weight",
    }


# Would catch: a fused head that is kept although it disagrees, or given up together with all
# rules.
def test_a_broken_fused_head_is_replaced_by_the_plain_one(monkeypatch):
    original = FusedHead._contribute

    def broken(self, hidden, derivative, *rest):
        return original(self, 2 * hidden, derivative, *rest)

    monkeypatch.setattr(FusedHead, "_contribute", broken)
    case = models.case("llama-untied")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    check(fisher, "llama-untied")
    assert fisher.coverage["lm_head.weight"] == "linear"


# Would catch: comparisons with NaN that are False on either side, so that every rule passes.
@pytest.mark.parametrize("broken", [("row-0",), ("row-0", "row-1", "row-2"), ("row-5",)])
def test_an_example_with_infinite_scores_does_not_switch_verification_off(broken):
    case = models.case("functional")
    data = [
        rows.Row(r.id, {"0": r.inputs["0"] * float("inf")}, r.labels) if r.id in broken else r
        for r in case.rows
    ]
    fisher = fs.estimate(case.model, rows.examples(data), on_nonfinite="skip", progress=False)
    assert sorted(fisher.skipped) == sorted(broken)
    good = [r for r in data if r.id not in broken]
    expected, _ = brute.diagonal(brute.twin("functional"), good, case.likelihood)
    compare(fisher.sums, expected)
    assert slow(fisher) == {"tied.weight"}


# Would catch: a rule trusted because its parameter got no gradient from the two examples it
# was tried on: two positions of one example look like one position of two.
@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_experts_that_the_first_examples_do_not_use(size):
    case = models.case("experts")
    data = rows.examples(case.rows)
    fisher = fs.estimate(case.model, data, batch_size=size, progress=False)
    check(fisher, "experts", covered=False)


class Routed(nn.Module):
    """A language model whose linear experts get the tokens that chose them, slot by slot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 6)
        self.router = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 30)

    def forward(self, input_ids, attention_mask=None):
        h = self.embed(input_ids)
        flat = h.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            slot, token = torch.where(number == chosen.T)
            if len(token):
                value = expert(flat[token]) * weights[token, slot, None]
                out.index_add_(0, token, value)
        return self.head(torch.tanh(out.view_as(h) + h))


# Would catch: as many selected tokens as the batch has, in an order of their own.
@pytest.mark.parametrize("size", [1, 2, 3])
def test_experts_chosen_token_by_token(size):
    torch.manual_seed(2)
    model = models.randomise(Routed())
    data = rows.text((3, 4, 3, 4, 3, 5, 4, 3), vocabulary=30, seed=4)
    options = {"likelihood": "causal-lm", "batch_size": size, "progress": False}
    fisher = fs.estimate(model, rows.examples(data), **options)
    expected, _ = brute.diagonal(brute.double(model), data, "causal-lm")
    compare(fisher.sums, expected)


# Would catch: a model that is asked to cache, and then overwrites what its own backward pass
# needs: a raw error of autograd instead of an estimate.
def test_a_recurrent_model_whose_cache_is_on():
    case = models.fresh("rwkv")
    case.model.config.use_cache = True
    fisher = fs.estimate(case.model, rows.examples(case.rows), batch_size=3, progress=False)
    check(fisher, "rwkv")
    assert case.model.config.use_cache


class Changeable(nn.Module):
    """Uses its layer in a way that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = self.layer(h) if len(x) < 3 else torch.stack([self.layer(row) for row in h])
        return self.head(torch.tanh(h))


# Would catch: partial sums kept when a use changes in the middle of a pass; a pass that is
# not started again; the same during a damage estimate.
def test_a_use_that_changes_after_verification():
    torch.manual_seed(0)
    model = Changeable()
    data = rows.points(7, (5,), classes=3)
    fisher = fs.estimate(model, rows.examples(data), batch_size=7, progress=False)
    expected, _ = brute.diagonal(brute.double(model), data, "classification")
    compare(fisher.sums, expected)
    assert slow(fisher) == {"layer.weight", "layer.bias"}


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Halved(nn.Linear):
    """Returns a view of its output."""

    def forward(self, x):
        return super().forward(x)[..., : self.out_features // 2]


class Saved(nn.Linear):
    """Its last operation keeps its output for the backward pass."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class Pair(nn.Linear):
    """Returns a tuple."""

    def forward(self, x):
        return super().forward(x), x


class ChannelsFirst(nn.LayerNorm):
    """Normalises the first feature dimension, not the last (both have the same size)."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Weird(nn.Module):
    def __init__(self, linear: nn.Module, width: int):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.norm = ChannelsFirst(4)
        self.odd = linear
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        odd = self.odd(self.norm(self.embed(x)))
        odd = odd[0] if isinstance(odd, tuple) else odd
        return self.head(torch.tanh(odd).sum(1))


# Would catch: trust in a class that overrides what it inherits.
@pytest.mark.parametrize("kind", [Scaled, Halved, Saved, Pair])
def test_subclasses_that_compute_something_else(kind):
    torch.manual_seed(1)
    model = models.randomise(Weird(kind(4, 6), 3 if kind is Halved else 6))
    data = rows.points(5, (4, 4), classes=3)
    fisher = fs.estimate(model, rows.examples(data), progress=False)
    expected, _ = brute.diagonal(brute.double(model), data, "classification")
    if kind is Halved:  # rows of the weight that never reach the output
        assert not expected["odd.bias"][3:].any()
    # The norm subtracts what this bias adds.
    compare(fisher.sums, expected, lambda name: name == "embed.bias")
    assert {"norm.weight", "norm.bias"} <= slow(fisher)


class Outside(nn.Module):
    """Like RMSNorm, but epsilon is added to the root."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x):
        return self.weight * (x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps))


# Would catch: a short cut for known norms that is taken by a norm which only looks like one
# for inputs of size one.
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_a_norm_that_resembles_another(scale):
    torch.manual_seed(0)
    model = models.randomise(nn.Sequential(nn.Linear(5, 6), Outside(6), nn.Linear(6, 3)))
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
    data = rows.points(6, (5,), classes=3)
    fisher = fs.estimate(model, rows.examples(data), progress=False)
    compare(fisher.sums, brute.diagonal(brute.double(model), data, "classification")[0])


# Would catch: an observer that runs before the user's own hooks and sees something else than
# the rest of the model does.
def test_hooks_of_the_user_that_change_inputs_and_outputs():
    def changed(model: nn.Module) -> nn.Module:
        model.first.register_forward_hook(lambda m, args, out: 2 * out)
        model.second.register_forward_pre_hook(lambda m, args: (args[0].square(),))
        return model

    case = models.fresh("mlp")
    data = rows.examples(case.rows)
    fisher = fs.estimate(changed(case.model), data, progress=False)
    expected, _ = brute.diagonal(brute.double(case.model), case.rows, case.likelihood)
    compare(fisher.sums, expected)


# Would catch: a parameter whose use can't be seen at all covered by nothing.
def test_every_requested_parameter_is_covered_once():
    case = models.case("multihead")
    fisher = fs.estimate(case.model, rows.examples(case.rows), progress=False)
    assert list(fisher.coverage) == [n for n, _ in case.model.named_parameters()]
    assert slow(fisher) == {n for n in fisher.coverage if n.startswith("attention.")}


# Would catch: an odd module among many dragging all others down the slow path.
def test_only_what_disagrees_is_slow():
    torch.manual_seed(1)
    model = models.randomise(Weird(nn.Linear(4, 6), 6))
    data = rows.points(5, (4, 4), classes=3)
    fisher = fs.estimate(model, rows.examples(data), progress=False)
    assert slow(fisher) == {"norm.weight", "norm.bias"}


class BehindItsBack(nn.Module):
    """A weight that is also used outside of its module."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.layer, self.out, self.size = nn.Linear(6, 6), nn.Linear(6, 2), size

    def forward(self, x):
        return self.size * self.out(self.layer(x) + x.flip(1) @ self.layer.weight.t())


# Planted: norms of squares in fp32 as they are: they overflow for data of 1e5 that nobody has
# normalised, underflow for tiny ones, and a wrong rule then agrees with autograd.
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_a_wrong_rule_is_noticed_at_any_scale(size):
    torch.manual_seed(0)
    model = BehindItsBack(min(size, 1.0))
    x = torch.randn(6, 6) * max(size, 1.0)
    y = torch.randn(6, 2) * size
    fisher = fs.estimate(model, (x, y), likelihood="regression", progress=False)
    assert "layer.weight" in slow(fisher)
