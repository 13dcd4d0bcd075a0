"""What a plan promises, against what the estimate then does."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope import passes as passes_room
from fisherscope import planning
from fisherscope.engine.live import LiveBytes
from fisherscope.engine.sweep import Sweep
from oracles import models, nets, rows
from oracles.checks import SLOW


# Would catch: a plan made by other code than the estimate.
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "opt", "vit", "unused"])
def test_the_plan_is_what_happens(name):
    case = models.case(name)
    data = rows.examples(case.rows)
    plan = fs.plan(case.model, data)
    fisher = fs.estimate(case.model, data, progress=False)
    assert plan.rules == fisher.coverage
    assert list(plan.rules) == list(fisher.sums)
    assert plan.n_parameters == fisher.n_parameters == sum(plan.sizes.values())
    assert (plan.n_examples, plan.n_tokens) == (fisher.n_examples, fisher.n_tokens)
    assert set(plan.slow) == {n for n in plan.rules if case.is_whole(n)}


# Would catch: a plan that fails on a use that the first two examples did not show.
def test_a_plan_of_experts_that_few_examples_use():
    case = models.case("experts")
    plan = fs.plan(case.model, rows.examples(case.rows), batch_size=9)
    assert list(plan.rules) == [n for n, _ in case.model.named_parameters()]


# Would catch: parameters missing from the table, or counted per use.
def test_table_and_text():
    case = models.case("vit")
    plan = fs.plan(case.model, rows.examples(case.rows))
    frame = plan.to_frame()
    assert frame["n_parameters"].sum() == sum(p.numel() for p in case.model.parameters())
    assert frame["n_tensors"].sum() == len(list(case.model.parameters()))
    assert frame["n_parameters"].is_monotonic_decreasing
    text = str(plan)
    assert "linear" in text and "convolution" in text and "norm" in text
    assert "5 examples, 5 tokens, 1 backward pass per batch" in text
    assert "slow path: vit.embeddings.cls_token" in text and SLOW not in text.split("slow path")[1]


# Would catch: token units planned as one pass, draws left out.
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"unit": "position"}, 1),
        ({"fisher_type": "mc", "draws": 5}, 5),
        ({"unit": "token"}, 7),
        ({"unit": "token", "fisher_type": "mc", "draws": 2}, 2),
    ],
)
def test_backward_passes(options, passes):
    case = models.case("gpt2")
    assert (
        max(len(row.labels) for row in case.rows) == 9
    )  # the first is never predicted, one is a hole
    plan = fs.plan(case.model, rows.examples(case.rows), **options)
    assert plan.passes == passes
    if passes > 1:
        assert f"{passes} backward passes per batch" in str(plan)


# Would catch: columns of the exact expectation left out of the cost, a vocabulary or the tokens
# not counted, a second pass of EKFAC or the parts under a memory limit forgotten, parts of the
# factors taken for those of the eigenvalues. Every promise is counted on the model itself.
@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        ("tiny-gpt2", {"fisher_type": "type-2"}, 4 * 7),  # tokens of the longest row, classes
        ("mlp", {"fisher_type": "type-2"}, 4),
        ("mlp-regression", {"fisher_type": "type-2"}, 2),
        ("tiny-bert-mlm", {"fisher_type": "type-2", "structure": "ekfac"}, 3 * 7),
        ("mlp", {"fisher_type": "mc", "unit": "batch", "draws": 3}, 3),
        ("tiny-gpt2", {"structure": "kfac", "memory_limit": 1600}, 1),
        ("llama-untied", {"structure": "ekfac", "memory_limit": 12_000}, 1),
        ("llama-untied", {"structure": "ekfac", "parameters": "*mlp*", "memory_limit": 9600}, 1),
    ],
)
def test_rounds_and_passes_are_those_that_are_counted(monkeypatch, name, options, passes):
    case = models.case(name)
    data = rows.examples(case.rows)
    plan = fs.plan(case.model, data, **options)
    counts = []
    real = Sweep.run

    def run(self, examples, labelling, sink, **others):
        seen = {}

        def counted(name, score, part, draw):
            seen.setdefault(name, set()).add(draw)
            sink(name, score, part, draw)

        found = real(self, examples, labelling, counted, **others)
        counts.append(max(map(len, seen.values())))
        return found

    monkeypatch.setattr(passes_room, "Sweep", type("Counted", (Sweep,), {"run": run}))
    fisher = fs.estimate(case.model, data, progress=False, **options)
    assert (plan.rounds, plan.passes) == (len(counts), passes)  # one batch holds all examples
    assert set(counts) == {passes}
    assert plan.rules == fisher.coverage
    if "memory_limit" in options:
        assert plan.rounds > 1 and plan.sums_bytes <= options["memory_limit"]
    assert f"{passes} backward pass" in str(plan)


# Would catch: a time that forgets the columns or the second pass: type-2 of seven classes is
# tried on four columns.
def test_the_time_of_type_2_grows_with_tokens_and_classes(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda go: go() or 1.0)
    case = models.case("tiny-gpt2")
    data = rows.examples(case.rows)
    verifying = 1
    assert fs.plan(case.model, data).seconds == pytest.approx(verifying + 1)
    once = fs.plan(case.model, data, fisher_type="type-2").seconds
    assert once == pytest.approx(verifying + 7 / 4)
    twice = fs.plan(case.model, data, fisher_type="type-2", structure="ekfac").seconds
    assert twice == pytest.approx(verifying + 2 * 7 / 4)


# Would catch: slow parameters that a structure words differently missing from the list.
@pytest.mark.parametrize("structure", ["kfac", "ekfac", "block"])
def test_slow_parameters_of_every_structure(structure):
    case = models.case("layerscale")
    plan = fs.plan(case.model, rows.examples(case.rows), structure=structure)
    assert set(plan.slow) == {n for n in plan.rules if case.is_whole(n)}
    assert "slow path: temperature (LayerScale.temperature has no fast rule)" in str(plan)


# Would catch: a plan of a classifier by tokens.
def test_token_unit_of_a_classifier_is_one_pass():
    case = models.case("bert")
    assert fs.plan(case.model, rows.examples(case.rows), unit="token").passes == 1


# Would catch: sums of fp32 counted as bf16, halves forgotten, grouped sums counted as full ones.
def test_memory_of_the_sums():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    n = sum(p.numel() for p in case.model.parameters())
    assert fs.plan(case.model, data).sums_bytes == 4 * n
    assert fs.plan(case.model, data, halves=True).sums_bytes == 12 * n
    assert fs.plan(torch.nn.Linear(5, 4), data, structure="grouped").sums_bytes == 4 * (4 + 4)
    double = models.fresh("mlp").model.double()
    data64 = rows.examples([
        rows.Row(r.id, {"0": r.inputs["0"].double()}, r.labels) for r in case.rows
    ])
    assert fs.plan(double, data64).sums_bytes == 8 * n
    half = models.fresh("mlp").model.bfloat16()
    data16 = rows.examples([
        rows.Row(r.id, {"0": r.inputs["0"].bfloat16()}, r.labels) for r in case.rows
    ])
    assert fs.plan(half, data16).sums_bytes == 4 * n


MEMORY = [
    ("llama-untied", 32, {"batch_size": 8}),
    ("llama-untied", 32, {"batch_size": 32}),  # more than is tried
    ("gpt2", 16, {"structure": "grouped"}),
    ("gpt2", 16, {"structure": "kfac"}),
    ("llama-untied", 16, {"structure": "ekfac"}),
    ("llama-untied", 16, {"halves": True, "batch_size": 2}),
    ("llama-untied", 16, {"memory_limit": 8000, "batch_size": 2}),
    ("llama-untied", 16, {"on_nonfinite": "skip", "batch_size": 2}),
    ("llama-untied", 16, {"fisher_type": "mc", "draws": 3}),
]


# Planted: activations of the trial for those of the largest batch; what verifying takes, the
# eigenvectors of an EKFAC, earlier halves or parts, or the sums apart of "skip" left out; weights
# counted. The tensors that are alive during the estimate itself are counted.
@pytest.mark.parametrize(("name", "count", "options"), MEMORY)
def test_memory_is_what_is_alive_at_most(name, count, options):
    case = models.case(name)
    data = rows.examples(rows.text([12] * count))
    plan = fs.plan(case.model, data, **options)
    with LiveBytes([*case.model.parameters(), *case.model.buffers()]) as live:
        fs.estimate(case.model, data, progress=False, **options)
    assert plan.memory_bytes == pytest.approx(live.peak, rel=0.2)


# Planted: no slope; needs in proportion to the batch; a slope through nothing. What a batch of any
# size needs (1000 here) grows with none.
@pytest.mark.parametrize(
    ("found", "padded", "needed"),
    [
        ([(10, 1100), (20, 1200)], 100, 2000),
        ([(10, 1100), (20, 1200)], 5, 1200),  # never less than was seen
        ([(10, 1300), (20, 1200)], 100, 1200),
        ([(20, 1200)], 100, 6000),  # one alone tells no slope: the worst
        ([(20, 1200), (20, 1200)], 100, 6000),
    ],
)
def test_what_a_larger_batch_needs_is_a_line_through_two_smaller_ones(found, padded, needed):
    assert planning._extrapolated(found, padded) == needed


# Planted: the first part taken for the largest. Here 156, 200 and 4 numbers.
def test_the_largest_part_counts():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.Linear(2, 50), torch.nn.Linear(50, 4)
    )
    data = rows.examples(rows.points(4, (2,), classes=4))
    plan = fs.plan(model, data, memory_limit=800)
    assert (plan.rounds, plan.sums_bytes) == (3, 800)


# Would catch: the time of the trial not scaled by the data, by tokens or by passes.
def test_time_is_proportional_to_the_work(monkeypatch):
    case = models.case("llama-untied")

    def timed(go):
        go()
        return 1.0

    monkeypatch.setattr(planning, "_timed", timed)
    data = rows.examples(rows.text([8] * 32))
    # The trial is over sixteen examples at most; verifying takes its second too.
    assert fs.plan(case.model, data, batch_size=4).seconds == pytest.approx(1 + 8)
    assert fs.plan(case.model, data, batch_size=32).seconds == pytest.approx(1 + 2)
    assert fs.plan(case.model, data[:4]).seconds == pytest.approx(1 + 1)
    token = fs.plan(case.model, data, unit="token").seconds
    assert token == pytest.approx(1 + 2, rel=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (12, "about 12 s"), (600, "about 10 min"), (9000, "about 2.5 h")],
)
def test_durations_in_words(seconds, text):
    assert planning._duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (18_800, "18.8 KB"), (3_210_000_000, "3.21 GB")]
)
def test_sizes_in_words(size, text):
    assert planning._size(size) == text


# Would catch: checks that only estimate() makes.
def test_a_plan_checks_like_an_estimate():
    case = models.case("mlp")
    data = rows.examples(case.rows)
    with pytest.raises(fs.ParameterError, match="structure"):
        fs.plan(case.model, data, structure="full")
    with pytest.raises(fs.LikelihoodError):
        fs.plan(nets.MLP(2), rows.examples(rows.points(3, (5,), targets=3)))
