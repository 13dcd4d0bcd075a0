"""What must not change a result: batches, their order, and gradient checkpointing."""

from __future__ import annotations

import random
import warnings

import pytest
import torch

import fisherscope as fs
from oracles import models, nets, rows
from oracles.checks import check, check_ledger, compare

UNITS = ("example", "token", "position")
BATCHED = ("gpt2", "llama-tied", "gpt-neox", "opt", "bert", "albert-mlm", "resnet", "experts")
CHECKPOINTED = ("gpt2", "llama-tied", "llama-untied", "qwen2-untied", "opt", "bert", "lora")


# Would catch: a sum over the batch before squaring, a batch mean, a broadcast table that is
# right for one size only, norms booked on the wrong example, experts' tokens split evenly.
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("name", BATCHED)
def test_batch_size_and_order_of_examples(name, size):
    case = models.case(name)
    data = rows.examples(case.rows)
    random.Random(size).shuffle(data)
    fisher = fs.estimate(case.model, data, batch_size=size, progress=False)
    # One example at a time even experts are covered by their rule.
    check(fisher, name, covered=name != "experts")
    check_ledger(fisher, name)


# Would catch: draws from a stream in the order of the batches; draws keyed by padded position.
@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "bert-mlm",
        "mlp-regression",
        "llama-classifier",
        "llama-classifier-unpadded",
        "mixed",
    ],
)
def test_drawn_labels_do_not_depend_on_batches_or_padding(name):
    case = models.case(name)
    options = {"fisher_type": "mc", "draws": 2, "seed": 3, "progress": False}
    whole = fs.estimate(case.model, rows.examples(case.rows), batch_size=8, **options)
    single = fs.estimate(case.model, rows.examples(case.rows[::-1]), batch_size=1, **options)
    compare(whole.sums, single.sums, case.vanishes)
    if name in models.TEXT:
        for layout in ("left", "right"):
            padded = fs.estimate(case.model, rows.LAYOUTS[layout](case.rows), **options)
            assert all(torch.equal(padded.sums[n], whole.sums[n]) for n in whole.sums)


# Would catch: rows padded with an id that is text to the model: it would be right all the same,
# but one example at a time.
def test_a_classifier_that_looks_for_its_padding_still_runs_in_batches():
    case = models.fresh("llama-classifier")
    sizes: list[int] = []
    case.model.model.register_forward_hook(lambda m, args, out: sizes.append(len(out[0])))
    fs.estimate(case.model, rows.examples(case.rows), batch_size=5, progress=False)
    assert sizes[-1] == 5


def recomputing(name: str, reentrant: bool) -> models.Case:
    """A model of one's own in training mode, with dropout and with checkpointing enabled."""
    case = models.fresh(name)
    base = case.model.get_base_model() if hasattr(case.model, "get_base_model") else case.model
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    case.model.train()
    return case


def count_calls(model: torch.nn.Module) -> list[int]:
    """Counts the calls of something inside of the first layer."""
    inside = next(
        m
        for n, m in model.named_modules()
        if ".0." in f".{n}."
        and isinstance(m, torch.nn.LayerNorm)
        or type(m).__name__.endswith("RMSNorm")
    )
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    inside.register_forward_hook(count)
    return calls


# Would catch: the recomputed forward pass counted as a second use, hooks that see only the
# pass without a graph, dropout switched on by the training mode that checkpointing needs.
# The number of calls shows that the layers really were computed twice.
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing(name, reentrant, unit):
    case = recomputing(name, reentrant)
    calls = count_calls(case.model)
    data = rows.examples(case.rows)
    fisher = fs.estimate(case.model, data, unit=unit, batch_size=3, progress=False)
    with_recomputation, calls[0] = calls[0], 0
    check(fisher, name)
    case.model.eval()  # in which transformers doesn't checkpoint
    base = case.model.get_base_model() if hasattr(case.model, "get_base_model") else case.model
    base.gradient_checkpointing_disable()
    fs.estimate(case.model, data, unit=unit, batch_size=3, progress=False)
    assert with_recomputation > 1.3 * calls[0]


# Would catch: torch's warning that gradients will be None, where none are wanted.
def test_no_false_alarm():
    case = recomputing("llama-untied", reentrant=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.estimate(case.model, rows.examples(case.rows), progress=False)


# Would catch: reentrant checkpointing records nothing where no input requires grad: zeros for
# a block whose embedding was not asked for.
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("patterns", ["*.1.*", ["*.mlp.*", "lm_head*"], "*ln_1.bias"])
def test_gradient_checkpointing_of_a_part_of_the_parameters(reentrant, patterns):
    case = recomputing("gpt2", reentrant)
    data = rows.examples(case.rows)
    check(fs.estimate(case.model, data, parameters=patterns, progress=False), "gpt2")


# Would catch: the slow path frozen up to the block, so that reentrant checkpointing gives its
# raw parameters a gradient of zero.
@pytest.mark.parametrize("patterns", [None, "blocks.*", "*.scale", ["blocks.*.linear.*", "head.*"]])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_with_raw_parameters(reentrant, patterns):
    case = models.case("layerscale")
    twin = nets.LayerScale(reentrant)
    twin.load_state_dict(case.model.state_dict())
    data = rows.examples(case.rows)
    fisher = fs.estimate(twin, data, parameters=patterns, progress=False)
    check(fisher, "layerscale")


# Would catch: dropout in a checkpointed layer that reads its rate from the configuration.
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layer_with_the_dropout_rate_in_its_configuration(reentrant):
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        hidden_dropout=0.3,
        attention_dropout=0.3,
    )
    torch.manual_seed(0)
    model = models.randomise(FalconForCausalLM(config))
    data = rows.examples(rows.text())
    plain = fs.estimate(model, data, progress=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    again = fs.estimate(model, data, progress=False)
    compare(again.sums, plain.sums)
    assert config.hidden_dropout == config.attention_dropout == 0.3
